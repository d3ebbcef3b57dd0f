"""What a call costs, against sums done by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.call.report.costs import CostMeter, Prices
from server.model import Usage

US, VENEZUELA, TOLL_FREE = "+12125550123", "+584125551234", "+18005550123"


def make_meter(model="gemini-3.8-live", direction="outbound", number=US, **prices) -> CostMeter:
    return CostMeter(Prices(**prices), model=model, direction=direction, number=number)


def usage(turn: int, audio_in=0, audio_out=0, text_in=0, text_out=0, total=None) -> Usage:
    prompt = {"AUDIO": audio_in, "TEXT": text_in}
    response = {"AUDIO": audio_out, "TEXT": text_out}
    added = audio_in + audio_out + text_in + text_out
    return Usage(prompt, response, added if total is None else total, turn)


def cost(meter: CostMeter, on_line_s=0.0, caller_audio_s=0.0, agent_audio_s=0.0) -> dict:
    return meter.as_dict(
        on_line_s=on_line_s, caller_audio_s=caller_audio_s, agent_audio_s=agent_audio_s
    )


def test_a_turn_costs_what_its_tokens_cost():
    meter = make_meter()
    meter.count(usage(1, audio_in=1_000_000, text_in=1_000_000))
    meter.count(usage(2, audio_out=1_000_000, text_out=1_000_000))

    assert cost(meter)["model_usd"] == pytest.approx(3.0 + 0.75 + 12.0 + 4.5)


def test_counts_of_one_turn_that_are_told_again_are_not_added():
    meter = make_meter()
    for audio_out in (100, 400, 400, 300):
        meter.count(usage(1, audio_in=250, audio_out=audio_out))
    meter.count(usage(2, audio_in=700, audio_out=50))

    assert meter.tokens() == {
        "prompt": {"AUDIO": 950, "TEXT": 0},
        "response": {"AUDIO": 450, "TEXT": 0},
        "other": 0,
    }


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9), st.booleans()), max_size=60))
def test_what_is_counted_does_not_depend_on_who_looks_meanwhile(told):
    watched, unwatched = make_meter(), make_meter()
    for turn, tokens, looks in told:
        for meter in (watched, unwatched):
            meter.count(usage(turn, audio_in=tokens, text_out=tokens, total=3 * tokens))
        if looks:
            watched.until_now()

    tokens, usd, is_complete = watched.until_now()

    assert tokens == unwatched.tokens()
    assert (usd, is_complete) == (pytest.approx(unwatched.until_now()[1]), not tokens["other"])


@pytest.mark.parametrize("looks", [False, True])
def test_what_is_summed_up_at_the_end_is_what_was_counted(looks):
    meter, open_one = make_meter(), make_meter()
    for turn in (1, 2):
        for one in (meter, open_one):
            one.count(usage(turn, audio_in=100 * turn, text_out=7))
    if looks:
        meter.until_now()

    meter.close()

    assert meter.until_now() == open_one.until_now()


@pytest.mark.parametrize(
    ("on_line_s", "minutes"), [(0.0, 0), (0.2, 1), (60.0, 1), (60.2, 2), (179.9, 3)]
)
def test_the_carrier_bills_every_minute_that_was_begun(on_line_s, minutes):
    told = cost(make_meter(), on_line_s=on_line_s)

    assert told["billed_minutes"] == minutes
    assert told["carrier_usd"] == pytest.approx(minutes * (0.014 + 0.004))


def test_the_carriers_own_count_of_seconds_wins():
    meter = make_meter()
    meter.billed_s = 61.0

    assert cost(meter, on_line_s=59.0)["billed_minutes"] == 2


@pytest.mark.parametrize(
    ("direction", "number", "own_number", "known"),
    [
        ("outbound", US, US, True),
        ("outbound", VENEZUELA, US, False),
        ("outbound", TOLL_FREE, US, False),
        ("outbound", "anonymous", US, False),
        ("inbound", VENEZUELA, US, True),
        ("inbound", US, TOLL_FREE, False),
    ],
)
def test_what_a_minute_costs_is_unknown_unless_the_table_has_it(
    direction, number, own_number, known
):
    told = cost(make_meter(direction=direction, number=number, own_number=own_number), 10.0)

    assert (told["carrier_usd"] != "unknown") is known
    assert (told["total_usd"] != "unknown") is known


def test_an_operators_own_minute_price_counts_everywhere():
    told = cost(make_meter(number=VENEZUELA, carrier_minute_usd=0.25), on_line_s=61.0)

    assert told["carrier_usd"] == 0.5
    assert told["carrier_prices_of"] == "CARRIER_MINUTE_USD"


def test_a_call_that_nobody_answered_costs_nothing_even_where_minutes_are_unknown():
    assert cost(make_meter(number=VENEZUELA))["total_usd"] == 0.0


@pytest.mark.parametrize(
    "counted",
    [
        Usage({"AUDIO": 100}, {"AUDIO": 100}, 500, 1),  # thoughts
        Usage({"AUDIO": 100}, {"HOLOGRAM": 1}, 101, 1),
        Usage({"MODALITY_UNSPECIFIED": 100}, {"AUDIO": 1}, 101, 1),
    ],
)
def test_tokens_without_a_price_make_the_cost_unknown_and_the_rest_a_lower_bound(counted):
    meter = make_meter()
    meter.count(counted)
    told = cost(meter)

    assert told["model_usd"] == told["total_usd"] == "unknown"
    assert told["known_usd"] >= 0.0


def test_an_unknown_model_is_unknown_and_not_free():
    meter = make_meter(model="gemini-9-live")
    meter.count(usage(1, audio_in=10))

    assert cost(meter)["model_usd"] == "unknown"
    assert cost(make_meter(model="gemini-9-live"), caller_audio_s=1.0)["model_usd"] == "unknown"
    assert cost(make_meter(model="gemini-9-live"))["model_usd"] == 0.0


@pytest.mark.parametrize("prefix", ["", "models/", "projects/x/locations/y/models/"])
def test_a_models_name_may_have_a_prefix_and_a_suffix(prefix):
    assert Prices().of_model(f"{prefix}gemini-3.8-live-extended-thinking") is not None
    assert Prices().of_model(f"{prefix}gemini-3.8-flash") is None


def test_audio_that_no_count_has_mentioned_is_priced_by_its_length():
    told = cost(make_meter(), caller_audio_s=60.0, agent_audio_s=60.0)

    # "about 0.0045 a minute in, 0.018 out"
    assert told["model_usd"] == pytest.approx(0.0045 + 0.018)


def test_a_turn_is_priced_by_the_model_that_spoke_it():
    meter = make_meter()
    meter.count(usage(1, text_out=1_000_000))
    meter.model = "gemini-2.5-flash-native-audio-preview"
    meter.count(usage(2, text_out=1_000_000))

    assert cost(meter)["model_usd"] == pytest.approx(4.5 + 2.0)
