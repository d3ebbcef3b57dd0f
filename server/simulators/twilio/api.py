"""The REST API: calls, the account itself, and the webhooks of its numbers."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import trio
from quart import Response, jsonify, request
from quart_trio import QuartTrio

from server.carrier import CallStatus
from server.simulators.twilio.account import ApiRequest, SimulatedAccount
from server.simulators.twilio.call import SimulatedCall
from server.simulators.twilio.refusals import ApiRefusal


def _resource(call: SimulatedCall) -> dict[str, Any]:
    """A call as the API shows it: every value a string or null."""
    path = f"/2010-04-01/Accounts/{call.account_sid}/Calls/{call.call_sid}"
    is_over = call.ended_at is not None
    # What webhooks call "initiated" is still "queued" or already "ringing" here.
    status = CallStatus.QUEUED if call.status is CallStatus.INITIATED else call.status
    return {
        "sid": call.call_sid,
        "account_sid": call.account_sid,
        "api_version": "2010-04-01",
        "status": status.value,
        "direction": call.direction,
        "from": call.from_number,
        "to": call.to,
        "from_formatted": call.from_number,
        "to_formatted": call.to,
        "phone_number_sid": None,
        "parent_call_sid": None,
        "forwarded_from": None,
        "caller_name": None,
        "group_sid": None,
        "trunk_sid": None,
        "answered_by": call.answered_by,
        "date_created": format_datetime(call.created),
        "date_updated": format_datetime(datetime.now(UTC)),
        "start_time": None,
        "end_time": None,
        "duration": str(math.ceil(call.duration_s)) if is_over else None,
        "price": None,
        "price_unit": "USD",
        "queue_time": "0",
        "uri": f"{path}.json",
        "subresource_uris": {
            name: f"{path}/{name.capitalize()}.json" for name in ("recordings", "streams", "events")
        },
    }


def make_api(account: SimulatedAccount) -> QuartTrio:
    """The routes of the REST API, as far as calls need them."""
    app = QuartTrio(__name__)
    account_path = "/2010-04-01/Accounts/<account_sid>"
    calls_path = f"{account_path}/Calls"
    numbers_path = f"{account_path}/IncomingPhoneNumbers"

    def check_credentials(account_sid: str) -> None:
        shown = request.authorization
        if shown is None or not account.may_ask(shown.username, shown.password):
            raise ApiRefusal(401, 20003, "Authenticate")
        if account_sid != account.account_sid:
            raise ApiRefusal(404, 20404, "The requested account was not found")

    @app.post(f"{calls_path}.json")
    async def create(account_sid: str) -> tuple[Response, int]:
        check_credentials(account_sid)
        return jsonify(_resource(account.create_call(await request.form))), 201

    @app.post(f"{calls_path}/<call_sid>.json")
    async def update(account_sid: str, call_sid: str) -> Response:
        check_credentials(account_sid)
        return jsonify(_resource(account.update_call(call_sid, await request.form)))

    @app.get(f"{calls_path}/<call_sid>.json")
    async def fetch(account_sid: str, call_sid: str) -> Response:
        check_credentials(account_sid)
        call = account.find_call(call_sid)
        call.note("status asked for over REST")
        return jsonify(_resource(call))

    @app.get(f"{account_path}.json")
    async def describe(account_sid: str) -> Response:
        check_credentials(account_sid)
        return jsonify(
            sid=account_sid, status=account.status, type=account.kind, friendly_name="Simulated"
        )

    @app.get(f"{numbers_path}.json")
    async def numbers(account_sid: str) -> Response:
        check_credentials(account_sid)
        return jsonify(account.numbers.list(request.args.get("PhoneNumber", "")))

    @app.post(f"{numbers_path}/<number_sid>.json")
    async def set_number(account_sid: str, number_sid: str) -> Response:
        check_credentials(account_sid)
        return jsonify(account.numbers.update(number_sid, await request.form))

    @app.after_request
    async def note(response: Response) -> Response:
        call_sid = (request.view_args or {}).get("call_sid", "")
        account.requests.append(
            ApiRequest(
                trio.current_time(),
                request.host,
                request.endpoint or "",
                call_sid,
                response.status_code,
            )
        )
        return response

    @app.errorhandler(ApiRefusal)
    async def refuse(refusal: ApiRefusal) -> tuple[Response, int, dict[str, str]]:
        body = {
            "code": refusal.code,
            "message": refusal.message,
            "more_info": f"https://www.twilio.com/docs/errors/{refusal.code}",
            "status": refusal.status,
        }
        wait_s = refusal.retry_after_s
        headers = {} if wait_s is None else {"Retry-After": str(wait_s)}
        return jsonify(body), refusal.status, headers

    return app
