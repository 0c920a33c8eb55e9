local key, size, slot_size = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local limit, lease, slot = tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[9]
local entry = 'c:' .. key

redis.call('ZREMRANGEBYSCORE', AT .. entry, '-inf', now)
local running = redis.call('ZCARD', AT .. entry)
if running >= limit then return { 'full' } end

size = size + slot_size * (running + 1)
if not fits({ entry, size }) then return { 'quota' } end
redis.call('ZADD', AT .. entry, text(now + lease), slot)
local last = redis.call('ZRANGE', AT .. entry, -1, -1, 'WITHSCORES')
keep(entry, size, tonumber(last[2]))
return { 'ok', text(running + 1) }
