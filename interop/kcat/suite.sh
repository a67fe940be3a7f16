#!/usr/bin/env bash
# kcat, the command line client on librdkafka.
set -u
b=${1:-127.0.0.1:9092}
t=kcat-$$-$RANDOM
passed=0 failed=0
check() { # NAME COMMAND…
  if "${@:2}"; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED $1"; fi
}
compression() { seq 1 1000 | kcat -b "$b" -P -t "$t-$1" -z "$1" && [ "$(kcat -b "$b" -C -t "$t-$1" -e -q | sort -n | tail -1)" = 1000 ]; }
for codec in none gzip snappy lz4 zstd; do check "compression $codec" compression "$codec"; done
listed() { kcat -b "$b" -L -t "$t-gzip" | grep -q "topic \"$t-gzip\""; }
check listed listed
keyed() { echo 'k:v' | kcat -b "$b" -P -t "$t-k" -K : -H h=1 && [ "$(kcat -b "$b" -C -t "$t-k" -e -q -f '%k|%s|%h|%o')" = 'k|v|h=1|0' ]; }
check "keys and headers" keyed
last() { seq 1 9 | kcat -b "$b" -P -t "$t-l" -p 0 && [ "$(kcat -b "$b" -C -t "$t-l" -p 0 -o -1 -e -q)" = 9 ]; }
check "from the end" last
grouped() { [ "$(timeout 20 kcat -b "$b" -G "$t-g" -c 1000 -q -X auto.offset.reset=earliest "$t-lz4" 2>/dev/null | wc -l)" = 1000 ]; }
check "as a group" grouped
empty() { printf 'k:\nk:b\n' | kcat -b "$b" -P -t "$t-z" -p 0 -K : -Z && [ "$(kcat -b "$b" -C -t "$t-z" -p 0 -e -q -Z -f '%s,')" = 'NULL,b,' ]; }
check "null values" empty
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
