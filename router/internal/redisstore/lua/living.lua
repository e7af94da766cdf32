-- Returns the descriptions of leases that have not run out, and forgets what
-- ended long ago. KEYS[1] the hash of leases. ARGV: memory in ms.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local memory = tonumber(ARGV[1])
local all, out = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #all, 2 do
  local till, what = string.match(all[i + 1], '^%d+:(%d+):(.*)$')
  if not till or tonumber(till) + memory <= now then
    redis.call('HDEL', KEYS[1], all[i])
  elseif tonumber(till) > now then
    out[#out + 1] = what
  end
end
return out
