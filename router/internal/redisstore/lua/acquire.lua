-- Counts one more connection unless the sum over the living is at the limit.
-- KEYS[1] the tenant's hash node → count:touched (ms).
-- ARGV: node, limit (0: none), memory in ms, other living nodes...
-- Returns {1 or 0, the sum before}.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local memory = tonumber(ARGV[3])
local living = {[ARGV[1]] = true}
for i = 4, #ARGV do living[ARGV[i]] = true end
local all = redis.call('HGETALL', KEYS[1])
local sum, mine = 0, 0
for i = 1, #all, 2 do
  local n, touched = string.match(all[i + 1], '^(%d+):(%d+)$')
  if living[all[i]] then
    n = tonumber(n) or 0
    sum = sum + n
    if all[i] == ARGV[1] then mine = n end
  elseif not n or tonumber(touched) + memory <= now then
    redis.call('HDEL', KEYS[1], all[i])
  end
end
local limit = tonumber(ARGV[2])
if limit > 0 and sum >= limit then return {0, sum} end
-- The hash has no life of its own: who is living is known here only, and a
-- living node may hold its connections for weeks without a word.
redis.call('HSET', KEYS[1], ARGV[1], string.format('%d:%d', mine + 1, now))
return {1, sum}
