-- So many in a day or a month. The key, which names the day or month, holds how many were used.
-- KEYS[2] holds the number of what this node settled last.
--
-- ARGV: the quota; units used already, below zero: given back; units without which nothing is to be
-- granted; most units to be granted; units used as far as the node knows, for a server that has forgotten
-- them; number of what is settled; milliseconds to keep the keys.
-- Returns: units granted; units left; units used.
local most = tonumber(ARGV[1])
local settle, need, want = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])

-- Sent again, for want of an answer, while a server that hung still had it to read.
if settle ~= 0 then
  local last = tonumber(redis.pcall('GET', KEYS[2]))
  if last and last >= tonumber(ARGV[6]) then
    settle = 0
  else
    redis.call('SET', KEYS[2], ARGV[6], 'PX', ARGV[7])
  end
end

-- What is no number, or of another type, is as good as nothing; SET below replaces it.
local kept = redis.pcall('GET', KEYS[1])
local used = type(kept) == 'string' and tonumber(kept)
if not (used and used >= 0 and used < 2 ^ 53) then used = tonumber(ARGV[5]) end
used = math.max(used + settle, 0)

local free = math.max(most - used, 0)
local granted = 0
-- A quota of which nothing but slices of nodes is out grants one request that is larger than itself.
if (free >= need and free > 0) or (need > most and used <= most / 100) then
  granted = math.max(need, math.min(free, want))
  used = used + granted
end
redis.call('SET', KEYS[1], string.format('%.0f', used), 'PX', ARGV[7])
return {granted, math.max(most - used, 0), used}
