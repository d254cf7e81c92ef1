"""What of shared limits runs inside Redis, each piece as one step, by the clock of Redis.

For a tenant there are two hashes, `tml:{tenant}:u` with what was used of each rule ("used at", in units and ms), and
`tml:{tenant}:p` with what each router holds of the tenant's concurrency ("held expires since", in permits and ms;
`since` is when it began to lack one, or 0). Both expire by themselves. The numbers are not sealed, since Redis itself
computes with them: whoever can write there can loosen or tighten limits, and learns no names.
"""

from __future__ import annotations

from ..cache.redis_scripts import Script

TAKE = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local short, waits, kept, lasts = false, {}, {}, 0
for at = 2, #ARGV, 4 do
  local name, limit, window, amount = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local before, since = string.match(redis.call('HGET', KEYS[1], name) or '', '^(%S+) (%S+)$')
  local used = 0
  if before then used = math.max(0, tonumber(before) - math.max(0, now - tonumber(since)) * limit / window) end
  local wait = math.max(0, (used + math.min(amount, limit) - limit) * window / limit)
  if wait > 0 then short = true end
  kept[#kept + 1] = {name, used, math.max(0, used + amount), limit, window}
  waits[#waits + 1] = math.ceil(wait)
  lasts = math.max(lasts, window)
end
local taken = ARGV[1] == 'charge' or (ARGV[1] == 'reserve' and not short)
local reply = {taken and 1 or 0, unpack(waits)}
for _, one in ipairs(kept) do
  local name, used, after, limit, window = unpack(one)
  if taken then
    redis.call('HSET', KEYS[1], name, string.format('%.6f %.3f', after, now))
    used = after
  end
  reply[#reply + 1] = math.ceil(used)
  reply[#reply + 1] = math.ceil(math.max(0, (used + 1 - limit) * window / limit))
end
if taken then redis.call('PEXPIRE', KEYS[1], 2 * lasts) end
return reply
""")
"""reserve, charge or look, then by rule: name, limit, window in ms, amount → 1 when it was taken, else 0; by rule the
wait in ms, 0 where so much is left; by rule what is used now, and the wait in ms until one unit is left."""

PERMITS = Script("""
local me, running, wanted, keep = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local spare, limit, lease = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local others, mine, since, waiting = 0, 0, 0, {}
local all = redis.call('HGETALL', KEYS[1])
for at = 1, #all, 2 do
  local held, ends, lacks = string.match(all[at + 1], '^(%d+) (%d+) (%d+)$')
  held, ends, lacks = tonumber(held), tonumber(ends), tonumber(lacks)
  if not held or ends <= now then
    redis.call('HDEL', KEYS[1], all[at])
  elseif all[at] == me then
    mine, since = held, lacks
  else
    others = others + held
    if lacks > 0 then waiting[#waiting + 1] = lacks end
  end
end
local asked = running + wanted
local granted = math.max(running, math.min(asked, mine, keep))
local ahead = 0
for _, lacks in ipairs(waiting) do
  if lacks < (since > 0 and since or now) then ahead = ahead + 1 end
end
local more = math.max(0, math.min(asked - granted, limit - others - granted - ahead))
granted = granted + more
if granted >= asked and #waiting == 0 then
  local idle = limit - others - granted - math.ceil(limit / 2)
  granted = granted + math.max(0, math.min(spare, idle))
end
if granted >= asked then since = 0 elseif more > 0 or since == 0 then since = now end
if granted > 0 or since > 0 then
  redis.call('HSET', KEYS[1], me, string.format('%d %d %d', granted, now + lease, since))
  redis.call('PEXPIRE', KEYS[1], 2 * lease)
else
  redis.call('HDEL', KEYS[1], me)
end
return {granted, #waiting}
""")
"""router, running, wanted beyond that, permits that it keeps if it has them, spare ones, the tenant's limit, lease in
ms → permits that it holds now, and how many other routers lack one.

What runs is the truth and always granted. Growth leaves one permit to each router that has lacked one for longer."""

ALL = (TAKE, PERMITS)
