-- Makes a device's route live and forgets the user's expired ghosts.
-- KEYS[1] the user's hash device → record. ARGV: device, its record with epoch 0.
-- A record is epoch:state:session:incarnation:version:until:node[:more].
-- Returns the new epoch and the record replaced ('' when there was none).
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local all = redis.call('HGETALL', KEYS[1])
local old, epoch = '', 1
for i = 1, #all, 2 do
  local e, state, till = string.match(all[i + 1], '^(%d+):(%d):%d+:%d+:%d+:(%d+):')
  if not e or (state == '3' and tonumber(till) <= now) then
    -- Expired, or nothing that any version wrote.
    redis.call('HDEL', KEYS[1], all[i])
  elseif all[i] == ARGV[1] then
    old, epoch = all[i + 1], tonumber(e) + 1
  end
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%d', epoch) .. string.sub(ARGV[2], 2))
redis.call('PERSIST', KEYS[1])
return {epoch, old}
