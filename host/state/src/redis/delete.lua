return { forget('v:' .. ARGV[4]) and 'ok' or 'unknown' }
