local key, size, slot_size, slot = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
local entry = 'c:' .. key

redis.call('ZREMRANGEBYSCORE', AT .. entry, '-inf', now)
local found = redis.call('ZREM', AT .. entry, slot) == 1
local last = redis.call('ZRANGE', AT .. entry, -1, -1, 'WITHSCORES')
if last[2] then
    keep(entry, size + slot_size * redis.call('ZCARD', AT .. entry), tonumber(last[2]))
else
    forget(entry)
end
return { found and 'ok' or 'unknown' }
