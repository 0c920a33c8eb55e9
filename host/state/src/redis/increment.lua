local key, size, by, ttl = ARGV[4], tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7])
local entry = 'v:' .. key
local there = redis.call('EXISTS', AT .. entry) == 1

-- 20 digits at most; the account gets the true size below.
if not fits({ entry, size + 20 }) then return { 'quota' } end
local sum = redis.pcall('INCRBY', AT .. entry, by)
if type(sum) == 'table' then return { 'invalid' } end

-- Read back as text: Lua's numbers are doubles, and have lost digits by now.
local value = redis.call('GET', AT .. entry)
local ends = there and tonumber(redis.call('ZSCORE', ENDS, entry)) or now + ttl
keep(entry, size + #value, ends)
return { 'ok', value }
