;; A policy that does nothing at all: its allocator is one addition, its answer is there already.
;; What a call of it takes is what the host takes.
(component
  (core module $m
    (memory (export "memory") 1)
    (global $free (mut i32) (i32.const 4096))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (local $at i32)
      (local.set $at
        (i32.and
          (i32.add (global.get $free) (i32.sub (local.get 2) (i32.const 1)))
          (i32.sub (i32.const 0) (local.get 2))))
      (global.set $free (i32.add (local.get $at) (local.get 3)))
      (local.get $at))
    (func (export "init") (param i32 i32) (result i32) (i32.const 1024))
    (func (export "identify")
      (param i32 i32 i64 i32 i32 i32 i32 i32 i32 i32) (result i32)
      (i32.const 2048))
    (func (export "return") (param i32) (global.set $free (i32.const 4096)))
    (data (i32.const 16) "empty")
    (data (i32.const 32) "0")
    ;; ok(descriptor): the name and the version, and nothing else.
    (data (i32.const 1032) "\10\00\00\00\05\00\00\00\20\00\00\00\01\00\00\00")
    ;; unknown
    (data (i32.const 2048) "\01"))
  (core instance $i (instantiate $m))
  (alias core export $i "memory" (core memory $memory))
  (alias core export $i "realloc" (core func $realloc))

  (type $kind' (enum "counter" "gauge" "histogram"))
  (export $kind "metric-kind" (type $kind'))
  (type $metric'
    (record (field "name" string) (field "kind" $kind) (field "help" string)
      (field "labels" (list string))))
  (export $metric "metric" (type $metric'))
  (type $events'
    (flags "queued" "dispatched" "first-token" "stalled" "timed-out" "disconnected" "preempted"))
  (export $events "event-set" (type $events'))
  (type $size' (record (field "tokens" u32) (field "max-delay" u64)))
  (export $size "window-size" (type $size'))
  (type $guarding' (variant (case "off") (case "observe" $size) (case "gate" $size)))
  (export $guarding "guarding" (type $guarding'))
  (type $watch'
    (record (field "events" $events) (field "stalled-after" (option u64))
      (field "guarding" $guarding)))
  (export $watch "watch" (type $watch'))
  (type $descriptor'
    (record (field "name" string) (field "version" string) (field "reasons" (list string))
      (field "metrics" (list $metric)) (field "needs" (list string)) (field "watch" $watch)
      (field "settings-schema" string)))
  (export $descriptor "descriptor" (type $descriptor'))
  (func $init (param "config" string) (result (result $descriptor (error string)))
    (canon lift (core func $i "init") (memory $memory) (realloc $realloc)))
  (instance $lifecycle (export "init" (func $init)))
  (export "interlock:policy/lifecycle@0.2.0" (instance $lifecycle))

  (type $endpoint' (enum "chat" "completions" "responses"))
  (export $endpoint "endpoint" (type $endpoint'))
  (type $header' (record (field "name" string) (field "value" string)))
  (export $header "header" (type $header'))
  (type $attribute' (record (field "name" string) (field "value" string)))
  (export $attribute "attribute" (type $attribute'))
  (type $priority' (enum "critical" "interactive" "standard" "batch" "sheddable"))
  (export $priority "priority" (type $priority'))
  (type $caller'
    (record (field "request-id" string) (field "arrived-at" u64) (field "endpoint" $endpoint)
      (field "credential" string) (field "address" string) (field "headers" (list $header))))
  (export $caller "caller" (type $caller'))
  (type $identity'
    (record (field "tenant" string) (field "priority" (option $priority))
      (field "attributes" (list $attribute)) (field "reason" u32)))
  (export $identity "identity" (type $identity'))
  (type $rejection'
    (record (field "status" u16) (field "reason" u32) (field "detail" (option string))
      (field "retry-after" (option u64)) (field "headers" (list $header))))
  (export $rejection "rejection" (type $rejection'))
  (type $answer' (variant (case "known" $identity) (case "unknown") (case "reject" $rejection)))
  (export $answer "answer" (type $answer'))
  (func $identify (param "caller" $caller) (result $answer)
    (canon lift (core func $i "identify") (memory $memory) (realloc $realloc)
      (post-return (core func $i "return"))))
  (instance $identify (export "identify" (func $identify)))
  (export "interlock:policy/identify@0.2.0" (instance $identify)))
