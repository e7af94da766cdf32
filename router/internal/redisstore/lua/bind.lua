-- Makes a device's route live. KEYS[1] the user's hash.
-- ARGV: device, rest of the value (session:incarnation:version:0:node).
-- Value: epoch:state:session:incarnation:version:until:node; until in ms.
-- Returns the new epoch and the previous value ('' when there was none).
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local all = redis.call('HGETALL', KEYS[1])
local old, epoch = '', 1
for i = 1, #all, 2 do
  local e, state, till = string.match(all[i + 1], '^(%d+):(%d):%d+:%d+:%d+:(%d+):')
  if state == '3' and tonumber(till) <= now then
    redis.call('HDEL', KEYS[1], all[i])
  elseif all[i] == ARGV[1] then
    old, epoch = all[i + 1], tonumber(e) + 1
  end
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%d:1:', epoch) .. ARGV[2])
redis.call('PERSIST', KEYS[1])
return {epoch, old}
