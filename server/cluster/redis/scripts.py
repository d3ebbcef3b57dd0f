"""What is asked of Redis, as scripts: each is one step that nobody else comes between.

A script touches the keys of one call, or those of the members or of an account (which share a hash
tag), so that each works in a cluster of many shards, too; elsewhere the states of many calls are
one step. They are sent whole (``EVAL``): one that a server has forgotten, because it was restarted,
is then no special case. A call is a hash: ``n`` its member, ``g`` its generation, ``s`` its sealed
state, ``x`` the attempt that seized it, ``o`` once it is over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

CALL_TTL_S = 5 * 3600
"""How long a call's key outlives the last word of it; the carrier ends calls after four hours."""
OVER_TTL_S = 900
"""How long it is known that a call is over: the carrier's late words about it come sooner."""
MEMBERS_TTL_S = 300
"""How long a silent member is remembered."""
REQUEST_TTL_S = 120
"""How long a request may be worked on: one that is to dial is answered within a minute."""

Word = str | bytes | int


Put = tuple[str, int, bytes | None]
"""A call, its generation, and its sealed state; None for a state that is not new."""


class Step(msgspec.Struct, frozen=True):
    """A script, and what it is called with."""

    script: str
    key: str
    words: tuple[Word, ...] = ()
    also: tuple[str, ...] = ()
    """Further keys, of other calls or on the same shard."""

    @property
    def keys(self) -> list[str]:
        """All of them."""
        return [self.key, *self.also]


_CLAIM = """
local h = redis.call('HMGET', KEYS[1], 'n', 'g', 'o')
if h[1] then return h end
redis.call('HSET', KEYS[1], 'n', ARGV[1], 'g', 1)
redis.call('EXPIRE', KEYS[1], ARGV[2])
return {ARGV[1], '1', false}
"""
_OWNER = "return redis.call('HMGET', KEYS[1], 'n', 'g', 'o')"
# Without a state there is nothing to take over; its first byte says whether the call has ended.
_LEFT = """
local h = redis.call('HMGET', KEYS[1], 'n', 'g', 'o', 's')
if not h[4] or string.sub(h[4], 1, 1) ~= ARGV[1] then h[3] = '1' end
return {h[1], h[2], h[3]}
"""
_SEIZE = """
local h = redis.call('HMGET', KEYS[1], 'n', 'g', 'o', 'x', 's')
if not h[1] then return -1 end
if h[3] then return 0 end
local g = tonumber(h[2])
if h[4] ~= ARGV[4] or h[1] ~= ARGV[1] then
  if h[1] ~= ARGV[2] or g ~= tonumber(ARGV[3]) then return 0 end
  g = g + 1
  redis.call('HSET', KEYS[1], 'n', ARGV[1], 'g', g, 'x', ARGV[4])
  redis.call('EXPIRE', KEYS[1], ARGV[5])
end
return {g, h[5]}
"""
# Who was told that a call is over may have lost it before, and the registry what was in it since:
# a later owner's word counts.
_PUT = """
local function put(key, g, has_state, state)
  local h = redis.call('HMGET', key, 'n', 'g', 'o')
  if h[1] and tonumber(h[2]) > g then return 0 end
  if h[1] and tonumber(h[2]) == g and (h[3] or h[1] ~= ARGV[1]) then return 0 end
  if h[3] then redis.call('HDEL', key, 'o') end
  redis.call('HSET', key, 'n', ARGV[1], 'g', g)
  if has_state then redis.call('HSET', key, 's', state) end
  redis.call('EXPIRE', key, ARGV[2])
  return h[1] and 1 or 2
end
local done = {}
for i, key in ipairs(KEYS) do
  done[i] = put(key, tonumber(ARGV[3 * i]), ARGV[3 * i + 1] == '1', ARGV[3 * i + 2])
end
return done
"""
_OVER = """
local h = redis.call('HMGET', KEYS[1], 'n', 'g', 'o')
local g = tonumber(ARGV[2])
if h[1] and tonumber(h[2]) > g then return 0 end
if h[1] and tonumber(h[2]) == g and (h[3] or h[1] ~= ARGV[1]) then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'n', ARGV[1], 'g', g, 'o', 1)
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
"""
# What was another's before may be that one's yet, should it only have been slow: it stays ours, and
# is asked for here.
_GIVE_BACK = """
local h = redis.call('HMGET', KEYS[1], 'n', 'g', 'o', 's')
if h[1] == ARGV[1] and h[2] == '1' and not h[3] and not h[4] then redis.call('DEL', KEYS[1]) end
"""
_JOIN = """
for i = 2, #ARGV do redis.call('SADD', KEYS[1], ARGV[i]) end
redis.call('EXPIRE', KEYS[1], ARGV[1])
"""
_LEAVE = "for i = 1, #ARGV do redis.call('SREM', KEYS[1], ARGV[i]) end"
_CALLS = "return redis.call('SMEMBERS', KEYS[1])"
# Members are the fields of one hash: when each was last heard of, by Redis's clock, and its load.
# "" is when the registry began, or was found to have lost something: now at the latest, though the
# clock was put back since.
_BEAT = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local last = tonumber(ARGV[3])
local mine = redis.call('HGET', KEYS[1], ARGV[1])
local lost = 0
if last > 0 and (not mine or tonumber(string.match(mine, '^%d+')) < last) then lost = 1 end
local begun = redis.call('HGET', KEYS[1], '')
-- Whoever was away for longer than a member is kept has been forgotten, and nothing else has.
if not begun or (lost == 1 and now - last < tonumber(ARGV[4])) or (tonumber(begun) or 0) > now then
  begun = string.format('%.0f', now)
  redis.call('HSET', KEYS[1], '', begun)
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now) .. ' ' .. ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
local pause = KEYS[1] .. ':pause'
local left = tonumber(ARGV[5])
if left <= 0 and ARGV[6] ~= '' then
  local told = redis.call('GET', pause)
  if told and string.sub(told, 1, #ARGV[1] + 1) == ARGV[1] .. ' ' then redis.call('DEL', pause) end
elseif left > 0 and redis.call('PTTL', pause) < left then
  redis.call('SET', pause, ARGV[1] .. ' ' .. ARGV[6], 'PX', left)
end
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if all[i] ~= '' and now - tonumber(string.match(all[i + 1], '^%d+') or 0) > tonumber(ARGV[4]) then
    redis.call('HDEL', KEYS[1], all[i])
  end
end
return {now, lost, redis.call('GET', pause), redis.call('PTTL', pause), all}
"""
_GONE = """
redis.call('HDEL', KEYS[1], ARGV[1])
if redis.call('HLEN', KEYS[1]) == 1 and redis.call('HEXISTS', KEYS[1], '') == 1 then
  redis.call('DEL', KEYS[1])
end
"""
_AGE = """
local begun = redis.call('HGET', KEYS[1], '')
if not begun then return -1 end
local t = redis.call('TIME')
return math.max(t[1] * 1000 + math.floor(t[2] / 1000) - begun, 0)
"""
_BEGIN_ANEW = """
local t = redis.call('TIME')
local begun = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
redis.call('HSET', KEYS[1], '', begun)
return begun
"""
# The generic cell rate algorithm: when the next turn is, in microseconds of Redis's clock. That may
# be put back, by whoever sets it or by a replica that takes over; then the turn is, too. When it
# was written stands in a key of its own: programs from before read and write a turn alone.
_TURN = """
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local put_back = math.max(tonumber(redis.call('GET', KEYS[2]) or 0) - now, 0)
local turn = math.max(tonumber(redis.call('GET', KEYS[1]) or 0) - put_back, now)
local function keep(turn)
  local px = math.ceil((turn - now) / 1000) + 1
  redis.call('SET', KEYS[1], string.format('%.0f', turn), 'PX', px)
  redis.call('SET', KEYS[2], string.format('%.0f', now), 'PX', px)
end
if turn - now > tonumber(ARGV[2]) then
  if put_back > 0 then keep(turn) end
  return -1
end
keep(turn + tonumber(ARGV[1]))
return turn - now
"""
_BEGIN = """
local v = redis.call('GET', KEYS[1])
if v and string.sub(v, 1, #ARGV[1]) ~= ARGV[1] then return v end
redis.call('SET', KEYS[1], ARGV[1] .. ARGV[2], 'EX', ARGV[3])
return false
"""
_END = """
local v = redis.call('GET', KEYS[1])
if v and string.sub(v, 1, #ARGV[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""
MAX_TURN_S = 86_400.0


class Steps:
    """Every step there is, with the keys of one server.

    Args:
        prefix: What all of its keys begin with.
        is_sharded: Whether a step may touch the keys of but one call: others may be elsewhere. It
            may turn out later.
    """

    def __init__(self, prefix: str, *, is_sharded: bool = False) -> None:
        self._prefix = prefix
        self.is_sharded = is_sharded
        self._members = f"{prefix}{{nodes}}"

    def _call(self, call_sid: str) -> str:
        return f"{self._prefix}{{{call_sid}}}"

    def _calls_of(self, member: str) -> str:
        return f"{self._prefix}calls:{member}"

    def _request(self, client: str, key: str) -> str:
        name = hashlib.sha256(f"{client}\0{key}".encode()).hexdigest()
        return f"{self._prefix}request:{name}"

    def claim(self, call_sid: str, member: str) -> Step:
        """Make a call a member's if it is nobody's; tells whose it is, and whether it is over."""
        return Step(_CLAIM, self._call(call_sid), (member, CALL_TTL_S))

    def owner(self, call_sid: str) -> Step:
        """Tell whose a call is, its generation and whether it is over."""
        return Step(_OWNER, self._call(call_sid))

    def left(self, call_sid: str, kind: bytes) -> Step:
        """Tell the same; a call of which nothing of this kind is kept counts as over."""
        return Step(_LEFT, self._call(call_sid), (kind,))

    def seize(
        self, call_sid: str, member: str, from_member: str, generation: int, attempt: str
    ) -> Step:
        """Take a call over: tells its generation and its state, -1 if there is none, 0 if it is
        another's or over; the same attempt, made again, tells the same."""
        words = (member, from_member, generation, attempt, CALL_TTL_S)
        return Step(_SEIZE, self._call(call_sid), words)

    def put(self, member: str, calls: Sequence[Put]) -> list[Step]:
        """Say that calls are a member's, and their states, unless somebody has them since: a list
        of 1 or 0, or 2 for one that was not known. As few steps as may be: each costs its client as
        much as a state's making.
        """
        if self.is_sharded and len(calls) > 1:
            return [step for one in calls for step in self.put(member, [one])]
        if not calls:
            return []
        words: list[Word] = [member, CALL_TTL_S]
        for _, generation, sealed in calls:
            words += generation, int(sealed is not None), sealed or b""
        key, *also = [self._call(call_sid) for call_sid, _, _ in calls]
        return [Step(_PUT, key, tuple(words), tuple(also))]

    def over(self, call_sid: str, member: str, generation: int) -> Step:
        """Say that a member's call is over, unless somebody has it since: 1 or 0."""
        return Step(_OVER, self._call(call_sid), (member, generation, OVER_TTL_S))

    def give_back(self, call_sid: str, member: str) -> Step:
        """Make a member's call that has not begun nobody's, if nobody had it before."""
        return Step(_GIVE_BACK, self._call(call_sid), (member,))

    def join(self, member: str, call_sids: Sequence[str]) -> Step:
        """Write calls into the list of a member's; whose they really are is said by each."""
        return Step(_JOIN, self._calls_of(member), (CALL_TTL_S, *call_sids))

    def leave(self, member: str, call_sids: Sequence[str]) -> Step:
        """Strike calls off the list of a member's."""
        return Step(_LEAVE, self._calls_of(member), tuple(call_sids))

    def calls_of(self, member: str) -> Step:
        """Tell the list of a member's calls."""
        return Step(_CALLS, self._calls_of(member))

    def beat(self, member: str, load: bytes, last_ms: int, pause: tuple[str, float] | None) -> Step:
        """Say how a member is, and tell how all are.

        Args:
            member: Who says it.
            load: What it says.
            last_ms: When it did before, as it was told; 0 if never.
            pause: What the model's service refuses, and for how many seconds; 0 for no longer.
        """
        kind, pause_s = pause or ("", 0.0)
        words = (member, load, last_ms, MEMBERS_TTL_S * 1000, int(pause_s * 1000), kind)
        return Step(_BEAT, self._members, words)

    def gone(self, member: str) -> Step:
        """Say that a member has left."""
        return Step(_GONE, self._members, (member,))

    def age(self) -> Step:
        """Tell for how many milliseconds the registry has been whole; -1 if nobody is in it."""
        return Step(_AGE, self._members)

    def begin_anew(self) -> Step:
        """Say that something of the registry was lost; tells when that was."""
        return Step(_BEGIN_ANEW, self._members)

    def turn(self, account: str, every_s: float, max_wait_s: float) -> Step:
        """Take an account's next turn: tells in how many microseconds it is, or -1."""
        every_us = int(min(every_s, MAX_TURN_S) * 1e6)
        max_wait_us = int(min(max(max_wait_s, 0.0), MAX_TURN_S) * 1e6)
        key = f"{self._prefix}dial:{account}"
        also = f"{self._prefix}dial-at:{{{key}}}"  # by its hash tag on the same shard
        return Step(_TURN, key, (every_us, max_wait_us), (also,))

    def begin(self, client: str, key: str, tag: bytes, fingerprint: bytes) -> Step:
        """Say that a request is worked on, unless somebody of another tag does: tells both."""
        words = (tag, fingerprint, REQUEST_TTL_S)
        return Step(_BEGIN, self._request(client, key), words)

    def end(self, client: str, key: str, tag: bytes) -> Step:
        """Say that a request is no longer worked on by whom the tag names."""
        return Step(_END, self._request(client, key), (tag,))
