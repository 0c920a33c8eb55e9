local key, size, value, ttl = ARGV[4], tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7])
local entry = 'v:' .. key

if not fits({ entry, size }) then return { 'quota' } end
redis.call('SET', AT .. entry, value)
keep(entry, size, now + ttl)
return { 'ok' }
