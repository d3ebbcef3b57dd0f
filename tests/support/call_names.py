"""Names of calls, one for each way in which a carrier gives one."""

from __future__ import annotations

CALL_NAMES = {
    "Twilio": "CA" + "0123456789abcdef" * 2,
    "a page": "BR" + "0123456789abcdef" * 2,
    "placed at Asterisk": "offhook-" + "0123456789abcdef" * 2,
    "Asterisk's own": "1732900000.5",
    "Asterisk's own, of a system with a name": "pbx-1.example-1732900000.51",
}
