-- Sees to it that an incarnation which a route names is cleaned up one day: its
-- lease does that, if there is one. KEYS: gateways' leases, the dead, the buried.
-- ARGV: id, incarnation (20 digits). Returns 1 if it is buried.
local ref = ARGV[1] .. '/' .. ARGV[2]
if redis.call('ZSCORE', KEYS[3], ref) then
  redis.call('HSET', KEYS[2], ref, '4')
  return 1
end
local v = redis.call('HGET', KEYS[1], ARGV[1])
local known = v and string.match(v, '^%d+:%d+:') and string.sub(v, 1, 20)
if known ~= ARGV[2] then
  redis.call('HSETNX', KEYS[2], ref, known and known > ARGV[2] and '3' or '1')
end
return 0
