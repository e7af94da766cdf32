-- Takes or prolongs the lead. KEYS: lease (hash), last term.
-- ARGV: instance, name, address, ttl in ms. Returns term, instance, name, address.
local held = redis.call('HMGET', KEYS[1], 'term', 'instance', 'name', 'address')
local term = held[1]
if term and held[2] ~= ARGV[1] then return held end
if not term then
  -- At least the time, so that terms rise also when Redis was emptied.
  local t = redis.call('TIME')
  local now = t[1] * 1000000 + t[2]
  local last = tonumber(redis.call('GET', KEYS[2]) or '0')
  term = string.format('%.0f', math.max(last + 1, now))
  redis.call('SET', KEYS[2], term)
end
redis.call('HSET', KEYS[1], 'term', term, 'instance', ARGV[1], 'name', ARGV[2], 'address', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return {term, ARGV[1], ARGV[2], ARGV[3]}
