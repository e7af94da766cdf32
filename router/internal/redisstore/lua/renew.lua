-- Takes or renews a lease. KEYS[1] the hash of leases; for gateways also KEYS[2]
-- the dead, KEYS[3] the buried.
-- ARGV: id, incarnation (20 digits, so that text compares like numbers),
-- lease in ms, description, memory in ms. Value: incarnation:until:description.
-- Returns 0 when a newer incarnation is known, or this one is buried.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local v = redis.call('HGET', KEYS[1], ARGV[1])
local till = v and string.match(v, '^%d+:(%d+):')
local known = till and string.sub(v, 1, 20)
if till and tonumber(till) + tonumber(ARGV[5]) > now and known > ARGV[2] then return 0 end
if KEYS[2] then
  local ref = ARGV[1] .. '/' .. ARGV[2]
  if redis.call('ZSCORE', KEYS[3], ref) then return 0 end
  redis.call('HDEL', KEYS[2], ref)
  local other = known and known ~= ARGV[2] and ARGV[1] .. '/' .. known
  if other and not redis.call('ZSCORE', KEYS[3], other) and redis.call('HGET', KEYS[2], other) ~= '2' then
    redis.call('HSET', KEYS[2], other, '3')
  end
end
-- Joined, not formatted: %s ends at a NUL.
redis.call('HSET', KEYS[1], ARGV[1],
  ARGV[2] .. ':' .. string.format('%d', now + tonumber(ARGV[3])) .. ':' .. ARGV[4])
return 1
