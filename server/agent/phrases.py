"""What the model is told between the lines, and what the caller is told when there is no model.

Instructions to the model are in English, whatever language the call is in, and say so: a model
that is asked in English likes to answer in English.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from server.agent.agent import Agent

_ASIDE = "(Not said by the caller; go on in the language of the call. {})"


def aside(instruction: str) -> str:
    """An instruction to the model in the middle of a call."""
    return _ASIDE.format(instruction)


NUDGE_TO_ANSWER = aside("The caller has finished speaking and waits for you. Answer now.")
NUDGE_TO_CONTINUE = aside(
    "The caller heard you break off in the middle of what you were saying. Finish it."
)
NUDGE_TO_ASK = aside("Ask the caller in a few words whether they are still there.")

STILL_THERE = aside(
    "The caller has not said anything for a while. Ask in a few words whether they are still there."
)
WRAP_UP = aside(
    "This call ends in {seconds:.0f} seconds. Tell the caller so, and bring it to an end."
)
CUT_OFF = aside(
    "The connection failed while you were answering the caller. Take up your answer again, or ask "
    "for the question if you do not know it."
)
GOODBYE_AGAIN = aside(
    "The line was interrupted for a moment while you said goodbye. Say goodbye once more, in one "
    "short sentence; the call then ends by itself."
)


def keys_pressed(keys: str) -> str:
    """Tell the model which keys of the telephone the caller has pressed, and have it answer."""
    noun = "keys" if len(keys) > 1 else "key"
    return aside(f"The caller pressed the {noun} {' '.join(keys)} on the telephone keypad.")


def transfer_failed(destination: str) -> str:
    """Make a model speak whose transfer has failed when it no longer waited for the answer."""
    return aside(
        f"The transfer to {destination} has failed: nobody took the call. "
        "The caller is back on the line. Tell them, and ask how to go on."
    )


def was_called(name: str, arguments: str, response: str) -> str:
    """Tell a model that does not remember having called a function what has come of it.

    Args:
        name: The function's.
        arguments: A JSON object, as the model gave it.
        response: A JSON object, as the function gave it.
    """
    return aside(
        f"For the caller's last request you called {name}({arguments}) a moment ago. It has "
        f"returned {response}. Go on from there, and do not call it again."
    )


def barge_in_hint(heard: str) -> str:
    """Tell the model how much of its turn was heard before the caller interrupted it."""
    if not heard:
        return aside("The caller interrupted before hearing anything of what you just said.")
    return aside(f'The caller interrupted you, and of what you said heard only this: "{heard}"')


def line_back(heard: str, *, heard_s: float) -> str:
    """Make the model say what was lost with the line.

    Args:
        heard: What the caller had heard of the turn, as far as its text is known.
        heard_s: How much of it that was.
    """
    if heard:
        missed = (
            f'of what you said last the caller heard only this: "{heard}" '
            "Go on from there, without greeting them again."
        )
    elif heard_s > WORD_S:
        missed = "the caller has not heard the end of what you said last. Say that part again."
    else:
        missed = "the caller heard nothing of what you said last. Say it again."
    return aside(f"The line was interrupted for a moment, and {missed}")


def line_was_lost(gap_s: float, *, heard: str | None = None, goes_on: bool = False) -> str:
    """Tell the model that the line was lost, whoever is to speak next.

    Args:
        gap_s: For how long it was.
        heard: What the caller had heard of the turn that was cut by it, as far as its text is
            known; None if nothing was missed.
        goes_on: Whether the model has said more since then, and the caller is to hear that.
    """
    lasted = f"{gap_s:.0f} seconds" if gap_s > 1.5 else "a moment"
    missed, what = "", "what you were saying when it began" if goes_on else "what you said last"
    if heard:
        missed = f'Of {what} the caller heard only this: "{heard}" '
    elif heard is not None:
        missed = f"The caller has not heard all of {what}. "
    if goes_on:
        missed += "They hear what you said after that. "
    return aside(
        f"The line was interrupted for {lasted}, in which neither of you heard the other. "
        f"{missed}If something seems to be missing, ask for it again."
    )


def taken_up(heard: str, *, interrupted: Sequence[str], done: Sequence[str]) -> str:
    """Make a model speak that goes on with a call of which it may not know the last moments.

    Args:
        heard: What the caller has surely heard of it last, as far as that is known.
        interrupted: Names of functions that were running then.
        done: Names of functions that were run since the model's memory ends.
    """
    told = [
        "The line was interrupted for a moment, and what either of you said last was not heard."
    ]
    if heard:
        told.append(f'The last that the caller has surely heard you say is this: "{heard}"')
    told += map(_was_interrupted, interrupted)
    for name in done:
        told.append(_was_run(name))
    told.append(
        "Say in a few words that the line was interrupted, without greeting them again, and take "
        "up what you were saying, or ask them to say again what they said last."
    )
    return aside(" ".join(told))


def forgotten(
    said: str, *, done: Iterable[tuple[str, str]], interrupted: Iterable[str] = ()
) -> str:
    """Tell a model that may not remember the last moments of a call what came in them.

    Args:
        said: What both have said, one turn a line, as far as the caller has heard it; empty if it
            is told by other means.
        done: Functions that were run, each as it was called, and what it has returned; the latter
            is empty where it would be too long, or is not known.
        interrupted: Names of functions that were running when the call was taken up.
    """
    told = ["The connection was renewed, and you may not remember what came last."]
    told += map(_was_interrupted, interrupted)
    for call, response in done:
        told.append(_was_run(call))
        if response:
            told.append(f"It has returned {response}.")
    told.append("Do not answer this.")
    if said:
        told.append(
            "This is what was said last, and the caller may have heard more of what you said than "
            f"is written here:\n{said}\n"
        )
    return aside(" ".join(told))


def _was_interrupted(name: str) -> str:
    return (
        f"The call to {name} was interrupted; its outcome is not known. Ask the caller before you "
        "try it again."
    )


def _was_run(call: str) -> str:
    return f"You have called {call} a moment ago, and it was run: do not run it again."


WORD_S = 0.5
"""Of what is shorter nobody has understood a word."""


def verbatim(text: str) -> str:
    """Make the model say exactly this."""
    return f'Say exactly the following words, and nothing else: "{text}"'


def leave_message(text: str) -> str:
    """Make the model speak to a machine that records."""
    recorded = "A voicemail system is recording you now: nobody hears you, and nobody answers."
    if text:
        return f"({recorded}) {verbatim(text)}"
    return aside(
        f"{recorded} Leave a message of one to three sentences: who you are and why you called."
    )


NOT_A_MACHINE = aside(
    "It was a person after all, and they have heard your message. Go on with the conversation."
)


def already_greeted(text: str) -> str:
    """Part of the system instruction: the greeting was a recording."""
    if not text:
        return "You have already greeted the caller. Do not greet them again."
    return (
        "You have already opened the call: the caller has heard you say the following words. "
        f'Do not greet them again, go on from there. "{text}"'
    )


def under_way(said: str) -> str:
    """Part of the system instruction: the model goes on with a call that it does not remember.

    Args:
        said: What both have said so far, one turn a line.
    """
    return f"The call is under way, so do not greet again. What has been said so far:\n{said}"


_APOLOGIES = {
    "en": "I am sorry, there is a technical problem. Please call again later. Goodbye.",
    "es": "Lo siento, hay un problema técnico. Por favor, llame más tarde. Adiós.",
    "pt": "Desculpe, há um problema técnico. Por favor, ligue mais tarde. Até logo.",
    "fr": "Je suis désolé, il y a un problème technique. Veuillez rappeler plus tard. Au revoir.",
    "de": "Es tut mir leid, es gibt eine technische Störung. Bitte rufen Sie später wieder an.",
    "it": "Mi dispiace, c'è un problema tecnico. La preghiamo di richiamare più tardi. A presto.",
    "nl": "Het spijt me, er is een technische storing. Belt u later nog eens. Tot ziens.",
}


def apology_of(agent: Agent) -> tuple[str, str]:
    """What the carrier says in place of this agent, and the tag of the language it is in."""
    text, language = apology(agent.language)
    if agent.apology:
        return agent.apology, agent.language or language
    return text, language


def apology(language: str | None) -> tuple[str, str]:
    """What the carrier says when no model does.

    Args:
        language: A BCP 47 tag, or None.

    Returns:
        The text, and the tag of the language it is in: English if there is none in this language.
    """
    tag = language or "en-US"
    text = _APOLOGIES.get(re.split("[-_]", tag)[0].lower())
    return (text, tag) if text is not None else (_APOLOGIES["en"], "en-US")
