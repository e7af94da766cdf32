-- Sets records of a user's devices unless better ones are there (route.Record.YieldsTo),
-- and forgets the user's expired ghosts.
-- KEYS[1] the user's hash device → record. ARGV: device, its record, and so on.
-- Returns how many were set.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)

local function parse(text)
  local e, state, session, inc, till, node = string.match(text, '^(%d+):(%d):(%d+):(%d+):%d+:(%d+):([^:]*)')
  return e and { e = tonumber(e), state = state, session = session, inc = inc, till = tonumber(till), node = node }
end
local function over(r) return r.state == '3' and r.till <= now end

local have = {}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local r = parse(all[i + 1])
  if not r or over(r) then
    redis.call('HDEL', KEYS[1], all[i])
  else
    have[all[i]] = r
  end
end

local set = 0
for i = 1, #ARGV, 2 do
  local device, new = ARGV[i], parse(ARGV[i + 1])
  local old = have[device]
  if old then
    local same = old.session == new.session and old.inc == new.inc and old.node == new.node
    if old.e < new.e or (old.e == new.e and (old.state ~= '3' or new.state ~= '2') and (old.state ~= '1' or same)) then
      set = set + 1
      if over(new) then
        redis.call('HDEL', KEYS[1], device)
        have[device] = nil
      else
        redis.call('HSET', KEYS[1], device, ARGV[i + 1])
        have[device] = new
      end
    end
  elseif not over(new) then
    set = set + 1
    redis.call('HSET', KEYS[1], device, ARGV[i + 1])
    have[device] = new
  end
end
if set == 0 then return 0 end

-- A hash of ghosts only goes by itself with the last of them.
local awake, last = false, 0
for _, r in pairs(have) do
  if r.state == '3' then last = math.max(last, r.till) else awake = true end
end
if awake then
  redis.call('PERSIST', KEYS[1])
elseif last > 0 then
  redis.call('PEXPIREAT', KEYS[1], string.format('%d', last))
end
return set
