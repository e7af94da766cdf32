-- Takes up to want tokens from a bucket of one second's worth.
-- KEYS[1] the tenant's bucket. ARGV: rate a second, want. Returns the number.
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local rate = tonumber(ARGV[1])
local v = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens = rate
if v[1] then
  tokens = math.min(rate, tonumber(v[1]) + math.max(0, now - tonumber(v[2])) * rate / 1000000)
end
local got = math.min(tonumber(ARGV[2]), math.floor(tokens))
redis.call('HSET', KEYS[1], 'tokens', string.format('%.6f', tokens - got), 'at', string.format('%d', now))
redis.call('PEXPIRE', KEYS[1], 5000)
return got
