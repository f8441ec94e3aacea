-- So many in a day or a month. The key, which names the day or month, holds how many were used.
--
-- ARGV: the quota; units used already, below zero: given back; units without which nothing is to be
-- granted; most units to be granted; units used as far as the node knows, for a server that has forgotten
-- them; milliseconds to keep the key.
-- Returns: units granted; units left; units used.
local most = tonumber(ARGV[1])
local need, want = tonumber(ARGV[3]), tonumber(ARGV[4])

-- What is no number, or of another type, is as good as nothing; SET below replaces it.
local kept = redis.pcall('GET', KEYS[1])
local used = type(kept) == 'string' and tonumber(kept)
if not (used and used >= 0 and used < 2 ^ 53) then used = tonumber(ARGV[5]) end
used = math.max(used + ARGV[2], 0)

local free = math.max(most - used, 0)
local granted = 0
-- A quota of which nothing but slices of nodes is out grants one request that is larger than itself.
if (free >= need and free > 0) or (need > most and used <= most / 100) then
  granted = math.max(need, math.min(free, want))
  used = used + granted
end
redis.call('SET', KEYS[1], string.format('%.0f', used), 'PX', ARGV[6])
return {granted, math.max(most - used, 0), used}
