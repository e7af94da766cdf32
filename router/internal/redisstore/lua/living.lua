-- Returns the descriptions of leases that have not run out, and forgets what
-- ended long ago. KEYS[1] the hash of leases; for gateways also KEYS[2] the dead,
-- KEYS[3] the buried. ARGV: memory in ms.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local memory = tonumber(ARGV[1])
local all, out = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #all, 2 do
  local inc, till, what = string.match(all[i + 1], '^(%d+):(%d+):(.*)$')
  if not till or tonumber(till) + memory <= now then
    redis.call('HDEL', KEYS[1], all[i])
    local ref = till and all[i] .. '/' .. inc
    if ref and KEYS[2] and not redis.call('ZSCORE', KEYS[3], ref) then
      redis.call('HSETNX', KEYS[2], ref, '1')
    end
  elseif tonumber(till) > now then
    out[#out + 1] = what
  end
end
return out
