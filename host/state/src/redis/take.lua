local key, size = ARGV[4], tonumber(ARGV[5])
local capacity, refill, cost = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local take = ARGV[9] == '1'
local entry = 'b:' .. key

local tokens = capacity
local held = redis.call('GET', AT .. entry)
if held then
    local level, since = string.match(held, '^(%S+) (%S+)$')
    level, since = tonumber(level), tonumber(since)
    if since > now then
        -- Somebody set the server's clock back. Counting from that future on would deny until it
        -- comes; the bucket fills from now on instead.
        redis.call('SET', AT .. entry, text(level) .. ' ' .. text(now), 'KEEPTTL')
        since = now
    end
    tokens = math.min(capacity, level + (now - since) / 1000000 * refill)
end

if tokens < cost then return { 'denied', text(cost - tokens) } end
local remaining = tokens - cost
if not take then return { 'ok', text(remaining) } end

if not fits({ entry, size }) then return { 'quota' } end
redis.call('SET', AT .. entry, text(remaining) .. ' ' .. text(now))
keep(entry, size, now + (capacity - remaining) / refill * 1000000)
return { 'ok', text(remaining) }
