"""What runs inside Redis, each piece as one step that nobody can come between.

The keys of a tenant are `tm:{tenant}:{generation}:…`; the generation has a part for everything and one for the tenant,
and a third for the model stands before each request's name. The parts are fields of the hash `tm:g`. A purge draws one
anew, and what was kept or under way below the old one can't be reached any more. Parts are random, not counted: were
the hash evicted, a counter would begin again and bring purged answers back.

Below a generation, for one request: `e:` the entry, and for each lane `l:` the lease (its value is its holder: the
fencing token, and the bell to ring for it), `s:` the leader's story so far (a list), `b:` the bells of those who
follow. For the whole tenant: `i` entries by expiry, and `z` their sizes, with the sum under an empty name.

Writes that find no memory are no errors here (`pcall`): what can't be kept isn't, and who can't get a lease goes alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script and the name that Redis gives it."""

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest())


# The prefix of a tenant's keys and the model's part; nothing when Redis has no memory for parts that are missing. Those
# are drawn by the caller, afresh for each call; one that gives none only wants to know whether all is as it was.
_GENERATION = """
local function failed(reply) return type(reply) == 'table' and reply.err ~= nil end
local function generation(tenant, model, fresh)
  local names = {'all', 't' .. tenant, 'm' .. model}
  local parts = redis.call('HMGET', 'tm:g', unpack(names))
  for at, name in ipairs(names) do
    if not parts[at] then
      if not fresh or failed(redis.pcall('HSETNX', 'tm:g', name, fresh)) then return nil end
      parts[at] = fresh
    end
  end
  return 'tm:' .. tenant .. ':' .. parts[1] .. parts[2] .. ':', parts[3]
end
"""

# Keeps a value under its tenant's quotas. Redis forgets entries by itself, by time or for space, and tells nobody:
# those count until their time is over. Should one of the two books be evicted, both begin anew. Times are microseconds:
# of two entries kept within a millisecond the later one must not go first.
_KEEP = """
local function keep(prefix, id, value, ttl_ms, max_entries, max_bytes)
  local index, sizes = prefix .. 'i', prefix .. 'z'
  local time = redis.call('TIME')
  local now = time[1] * 1000000 + time[2]
  local count, books = redis.call('ZCARD', index), redis.call('HMGET', sizes, '', id)
  local sum, before = tonumber(books[1] or 0), books[2]
  if redis.call('HLEN', sizes) ~= count + 1 then
    redis.call('DEL', index, sizes)
    count, sum, before = 0, 0, nil
  end
  local function drop(old)
    sum = sum - (redis.call('HGET', sizes, old) or 0)
    redis.call('HDEL', sizes, old)
    count = count - redis.call('ZREM', index, old)
  end
  for _, old in ipairs(redis.call('ZRANGEBYSCORE', index, '-inf', now, 'LIMIT', 0, 1000)) do drop(old) end
  if before then drop(id) end
  local kept, evicted = max_entries > 0 and #value <= max_bytes, 0
  if kept then
    while count >= max_entries or sum + #value > max_bytes do
      local oldest = redis.call('ZRANGE', index, 0, 0)[1]
      redis.call('DEL', prefix .. 'e:' .. oldest)
      drop(oldest)
      evicted = evicted + 1
    end
    kept = not failed(redis.pcall('SET', prefix .. 'e:' .. id, value, 'PX', ttl_ms))
  end
  if kept then
    count, sum = count + 1, sum + #value
    redis.pcall('ZADD', index, now + 1000 * ttl_ms, id)
    redis.pcall('HSET', sizes, id, #value, '', sum)
  else
    redis.pcall('HSET', sizes, '', sum)
  end
  if redis.call('PTTL', index) < ttl_ms then  -- an eighth longer than needed, and the next keeps need not extend it
    for _, book in ipairs({index, sizes}) do redis.call('PEXPIRE', book, math.floor(ttl_ms * 1.125)) end
  end
  return kept and 1 or 0, evicted, count, sum
end
"""

# What lies under an entry's name; something that is no string at all is dropped.
_VALUE = """
local function value_of(entry)
  local value = redis.pcall('GET', entry)
  if failed(value) then
    redis.call('DEL', entry)
    return nil
  end
  return value
end
"""

_RING = """
local function ring(bells, tail)
  for _, bell in ipairs(redis.call('SMEMBERS', bells)) do redis.call('PUBLISH', bell, tail) end
end
"""

GET = Script(
    _GENERATION
    + _VALUE
    + """
local prefix, model = generation(ARGV[1], ARGV[2], ARGV[3])
if not prefix then return {'none'} end
local value = value_of(prefix .. 'e:' .. model .. ARGV[4])
return value and {'hit', prefix, model .. ARGV[4], value} or {'none'}
"""
)
"""tenant, model, fresh part, name → "hit", prefix, id, value; or "none"."""

PLACE = Script(
    _GENERATION
    + """
local prefix, model = generation(ARGV[1], ARGV[2], ARGV[3])
return prefix and {prefix, model .. ARGV[4]} or {}
"""
)
"""tenant, model, fresh part, name → prefix and id, under which the value is to be sealed; empty without memory."""

KEEP = Script(
    _GENERATION
    + _KEEP
    + """
local prefix, model = generation(ARGV[1], ARGV[2], ARGV[3])
if prefix ~= ARGV[4] or model .. ARGV[5] ~= ARGV[6] then return {0, 0, 0, 0} end
return {keep(prefix, ARGV[6], ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10]))}
"""
)
"""tenant, model, fresh part, prefix, name, id, value, ttl in ms, entries and bytes at most → kept (0 or 1), evicted,
entries, bytes. Keeps nothing when a purge has come between."""

CLAIM = Script(
    _GENERATION
    + """
local prefix, model = generation(ARGV[1], ARGV[2], ARGV[3])
if not prefix then return {'none'} end
local id = model .. ARGV[4]
local tail = id .. ':' .. ARGV[5]
local lease, story, bells = prefix .. 'l:' .. tail, prefix .. 's:' .. tail, prefix .. 'b:' .. tail
local value, holder = unpack(redis.call('MGET', prefix .. 'e:' .. id, lease))
if value then return {'hit', prefix, id, value} end
local from = tonumber(ARGV[6])
local told = redis.call('LRANGE', story, from, -1)
if from > 0 and #told == 0 and redis.call('LLEN', story) < from then
  from = 0
  told = redis.call('LRANGE', story, 0, -1)
end
local left = holder and redis.call('PTTL', lease)
if holder and (left < 0 or left > tonumber(ARGV[10])) then  -- nobody of ours writes such a lease: it would not end
  redis.call('DEL', lease)
  holder = false
end
if holder then
  if redis.pcall('SADD', bells, ARGV[8]) == 1 then
    redis.call('PUBLISH', string.match(holder, ':(.*)$'), tail)
  end
  redis.call('PEXPIRE', bells, ARGV[10])
  return {'follow', prefix, id, from + #told, told}
end
-- Not where something lies that is no lease; nor, an error then, where there is no memory.
local led = redis.pcall('SET', lease, ARGV[7] .. ':' .. ARGV[8], 'NX', 'PX', ARGV[9])
if not led or led.err then return {'none'} end
return {'lead', prefix, id, from + #told, told}
"""
)
"""tenant, model, fresh part, name, lane, parts of the story heard, token, bell, lease and story in ms → "hit", prefix,
id, value; "follow" or "lead", prefix, id, parts of the story, those not heard; or "none"."""

TELL = Script(
    _RING
    + """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local told = redis.pcall('RPUSH', KEYS[2], ARGV[2])
if type(told) == 'table' then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
ring(KEYS[3], ARGV[5])
return 1
"""
)
"""Keys: lease, story, bells. holder, part of the story, lease and story in ms, tail → 1; 0 when the lease is another's,
or the part found no memory."""

RENEW = Script(
    """
local replies = {}
for at, holder in ipairs(ARGV) do
  if at > 1 then
    local lease, bells = KEYS[2 * at - 3], KEYS[2 * at - 2]
    local mine = redis.call('GET', lease) == holder
    if mine then redis.call('PEXPIRE', lease, ARGV[1]) end
    replies[at - 1] = mine and 1 + redis.call('EXISTS', bells) or 0
  end
end
return replies
"""
)
"""Keys: lease and bells of each. Lease in ms, then each holder → for each: 0 lost, 1 held, 2 held and followed."""

FINISH = Script(
    _GENERATION
    + _KEEP
    + _RING
    + """
if redis.call('GET', KEYS[1]) ~= ARGV[6] then return {-1, 0, 0, 0} end
local prefix, model = generation(ARGV[1], ARGV[2])
local kept, evicted, count, sum = 0, 0, 0, 0
if prefix == ARGV[3] and model .. ARGV[4] == ARGV[5] and ARGV[8] ~= '' then
  kept, evicted, count, sum = keep(prefix, ARGV[5], ARGV[8], tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11]))
end
local told = kept == 1
if not told and redis.call('EXISTS', KEYS[3]) == 1 then
  if ARGV[8] ~= '' then
    told = not failed(redis.pcall('RPUSH', KEYS[2], ARGV[8]))
  else
    told = not failed(redis.pcall('RPUSH', KEYS[2], ARGV[13], ARGV[14]))
  end
  if told then
    redis.call('PEXPIRE', KEYS[2], ARGV[12])
    redis.pcall('SET', KEYS[1], 'ended:', 'PX', ARGV[12])
  end
end
if kept == 1 or not told then redis.call('DEL', KEYS[1]) end
ring(KEYS[3], ARGV[7])
return {kept, evicted, count, sum}
"""
)
"""Keys: lease, story, bells. tenant, model, prefix, name, id, holder, tail, value, ttl in ms, entries and bytes at
most, story in ms, and where the value is empty the last part of the story and its ending → as KEEP, or −1 first when
the lease is another's. Followers find the entry; where it could not be kept, the story ends with it, or with what there
is in its place, and a lease that nobody holds."""

ABANDON = Script(
    _RING
    + """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
ring(KEYS[2], ARGV[2])
return 1
"""
)
"""Keys: lease, bells. holder, tail → 1 when it was held."""

DISCARD = Script("if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0")
"""Key: entry. Value → drops the entry if it still has this value."""

PURGE = Script("return redis.call('HSET', 'tm:g', ARGV[1], ARGV[2])")
"""Field, fresh part."""

HOLDINGS = Script(
    """
local replies = {}
for at, tenant in ipairs(ARGV) do
  local parts = redis.call('HMGET', 'tm:g', 'all', 't' .. tenant)
  replies[2 * at - 1], replies[2 * at] = 0, 0
  if parts[1] and parts[2] then
    local prefix = 'tm:' .. tenant .. ':' .. parts[1] .. parts[2] .. ':'
    replies[2 * at - 1] = redis.call('ZCARD', prefix .. 'i')
    replies[2 * at] = tonumber(redis.call('HGET', prefix .. 'z', '') or 0)
  end
end
return replies
"""
)
"""Tenants → entries and bytes of each."""

ALL = (GET, PLACE, KEEP, CLAIM, TELL, RENEW, FINISH, ABANDON, DISCARD, PURGE, HOLDINGS)
