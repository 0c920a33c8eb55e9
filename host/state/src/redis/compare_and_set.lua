local key, size, new, ttl = ARGV[4], tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7])
local old = ARGV[8] or false -- what GET says where there is nothing
local entry = 'v:' .. key

if redis.call('GET', AT .. entry) ~= old then return { 'denied' } end
if not fits({ entry, size }) then return { 'quota' } end
redis.call('SET', AT .. entry, new)
keep(entry, size, now + ttl)
return { 'ok' }
