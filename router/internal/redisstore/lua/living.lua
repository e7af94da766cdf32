-- Returns the descriptions of leases that have not run out, and forgets what
-- ran out an hour ago. KEYS[1] the hash of leases.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local all, out = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #all, 2 do
  local till, what = string.match(all[i + 1], '^%d+:(%d+):(.*)$')
  till = tonumber(till)
  if till > now then
    out[#out + 1] = what
  elseif till > 0 and till < now - 3600000 then
    redis.call('HDEL', KEYS[1], all[i])
  elseif till == 0 then
    -- Removed in order: from now on it ages like one that ran out.
    redis.call('HSET', KEYS[1], all[i], string.format('%s:%d:', string.sub(all[i + 1], 1, 20), now))
  end
end
return out
