-- Takes a device's route out of the live state if node and epoch match.
-- KEYS[1] the user's hash.
-- ARGV: device, epoch, incarnation, node, new state (2 closing, 3 ghost), ttl in ms.
-- Returns 1 if it was applied.
local v = redis.call('HGET', KEYS[1], ARGV[1])
if not v then return 0 end
local e, state, session, inc, version, node = string.match(v, '^(%d+):(%d):(%d+):(%d+):(%d+):%d+:(.*)$')
if state == '3' or e ~= ARGV[2] or inc ~= ARGV[3] or node ~= ARGV[4] then return 0 end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local till = 0
if ARGV[5] == '3' then
  if tonumber(ARGV[6]) <= 0 then
    redis.call('HDEL', KEYS[1], ARGV[1])
    return 1
  end
  till = now + tonumber(ARGV[6])
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%s:%s:%s:%s:%s:%d:%s', e, ARGV[5], session, inc, version, till, node))
-- A hash of ghosts only goes by itself with the last of them.
local last = 0
for _, val in ipairs(redis.call('HVALS', KEYS[1])) do
  local s, u = string.match(val, '^%d+:(%d):%d+:%d+:%d+:(%d+):')
  if s ~= '3' then return 1 end
  last = math.max(last, tonumber(u))
end
redis.call('PEXPIREAT', KEYS[1], string.format('%d', last))
return 1
