//! The limits of rendering, and templates that try to get past them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::*;

/// What a render that was refused met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Met {
    Steps,
    Depth,
    /// An error of the template: a step that cannot be taken, or a limit of the engine's.
    Error,
}

/// A tenth of what a render has: these tests are many.
const STEPS: u64 = FUEL / 10;

/// Renders on a thread with half the stack that is asked for, and asserts that it ends. One that
/// does not end fails the test; nothing is said of how long it takes.
fn met(template: &str, messages: &[Message]) -> Result<String, Met> {
    met_after(template, messages).0
}

/// The same, and how often the template called `tick()`.
fn met_after(template: &str, messages: &[Message]) -> (Result<String, Met>, usize) {
    const ENDS_SECONDS: u64 = 300;

    let (template, messages) = (template.to_owned(), messages.to_vec());
    let shown: String = template.chars().take(200).collect();
    let ticked = Arc::new(AtomicUsize::new(0));
    let ticks = Arc::clone(&ticked);
    let (done, ended) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().stack_size(crate::STACK_BYTES / 2).spawn(move || {
        let rendered = template_of(&template)
            .map_err(|error| RenderError::Template(error.to_string()))
            .and_then(|mut template| {
                template.environment.set_fuel(Some(STEPS));
                template.environment.add_function("tick", move || {
                    ticks.fetch_add(1, Relaxed);
                });
                template.render(&messages, &ChatOptions::default(), usize::MAX, usize::MAX)
            });
        done.send(rendered).unwrap();
    });
    let rendered = ended.recv_timeout(std::time::Duration::from_secs(ENDS_SECONDS));
    let rendered = rendered.unwrap_or_else(|error| panic!("{error}: {shown}"));
    thread.unwrap().join().unwrap();
    let met = rendered.map_err(|error| match error {
        RenderError::TooCostly(RenderLimit::Steps(FUEL)) => Met::Steps,
        RenderError::TooCostly(RenderLimit::Depth(DEPTH_MAX)) => Met::Depth,
        RenderError::Template(_) => Met::Error,
        other => panic!("{other:?}: {shown}"),
    });
    (met, ticked.load(Relaxed))
}

/// A megabyte from a client.
fn long() -> Vec<Message> {
    vec![message("user", &"a".repeat(1 << 20))]
}

/// Four million times, each begun with most of the steps left.
fn forever(body: &str) -> String {
    times(1999, &times(1999, body))
}

fn times(count: usize, body: &str) -> String {
    format!("{{% for i in range({count}) %}}{body}{{% endfor %}}")
}

#[test]
fn a_loop_without_end_meets_the_limit_of_steps_whatever_is_in_it() {
    for body in [
        "",
        "{{ messages[0].content }}",
        "{% set x = messages[0].content.find('b') %}",
        "{% set x = messages[0].content.replace('a', 'aa') %}",
        "{% set x = 'b' in messages[0].content %}",
        "{% set x = messages[0].content == messages[0].content ~ 'b' %}",
        "{% set x = messages[0].content == messages[0].content %}",
        "{% set x = messages[0].content < messages[0].content %}",
        "{% set x = messages[0].content | tojson | length %}",
        "{% set x = messages[0].content * 1000 %}",
        "{% set x = messages[0].content[999999] %}",
        "{% set x = messages[0].content[i] %}",
        "{% set x = messages[0].content[999999:] %}",
        "{% set x = messages[0].content[::-1] %}",
        "{% set x = messages[0].content | first %}",
        "{% set x = messages[0].content | length %}",
        "{% set x = messages[0].content.startswith(('b', 'c')) %}",
        "{% set x = messages[0].content is eq(messages[0].content) %}",
        "{% set x = messages | map(attribute='content') | join | length %}",
        "{% set x = messages[0].content.split('a') %}",
        "{% set x = messages | string %}",
    ] {
        assert_eq!(met(&forever(body), &long()), Err(Met::Steps), "{body}");
    }
}

/// Lists that are short to hold and 2^40 values long to look at.
#[test]
fn what_holds_itself_twice_forty_times_over_meets_the_limit_of_steps() {
    let by_namespace = |made: &str| {
        format!(
            "{{% set ns = namespace(x=[1], y=[2]) %}}{}{{% set x = ns.x %}}{{% set y = ns.y %}}",
            times(
                40,
                &format!(
                    "{{% set ns.x = {} %}}{{% set ns.y = {} %}}",
                    made,
                    made.replace("ns.x", "ns.y")
                )
            )
        )
    };
    let one_by_one = format!(
        "{{% set x = [1] %}}{{% set y = [2] %}}{}",
        "{% set x = [x, x] %}{% set y = [y, y] %}".repeat(40)
    );
    let made = [
        by_namespace("[ns.x, ns.x]"),
        by_namespace("(ns.x, ns.x)"),
        by_namespace("{'a': ns.x, 'b': ns.x}"),
        by_namespace("dict(a=ns.x, b=ns.x)"),
        by_namespace("ns.x + ns.x"),
        by_namespace("ns.x * 2"),
        by_namespace("[ns.x, ns.x][:]"),
        by_namespace("[ns.x, ns.x] | map('list') | list"),
        one_by_one,
    ];
    let looks = [
        "",
        "{{ x }}",
        "{{ x == y }}",
        "{{ x < y }}",
        "{{ x < y < x }}",
        "{{ [x, y] | sort }}",
        "{{ [x, y] | unique | list }}",
        "{{ x ~ '' }}",
        "{{ x | tojson }}",
        "{{ x in [y] }}",
    ];
    for made in &made {
        assert_eq!(met(made, &[]), Err(Met::Steps), "{made}");
    }
    for look in looks {
        let template = format!("{}{look}", made[0]);
        assert_eq!(met(&template, &[]), Err(Met::Steps), "{look}");
    }
    let by_macro = "{% macro f(x, n) %}{% if n %}{{ f([x, x], n - 1) }}{% else %}{{ x }}{% endif %}{% endmacro %}{{ f([1], 40) }}";
    assert_eq!(met(by_macro, &[]), Err(Met::Steps));
}

/// Ten thousand values that look like one, and are looked at without end.
#[test]
fn looking_at_much_costs_much_however_it_is_hidden() {
    /// At 5,000 values each, two values a step.
    const LOOKS_MAX: usize = STEPS as usize / 2500;

    let mut cheap = Vec::new();
    let hidden = "{% set x = [[range(5000) | list]] %}{% set y = [[range(5000) | list]] %}{% set t = {'a': x, 'b': y} %}";
    for look in [
        "x == y",
        "x != y",
        "x < y",
        "x <= y",
        "x > y",
        "x >= y",
        "x == y == x",
        "x < y < x",
        "x in [y]",
        "x not in [y]",
        "x in [y] in [y]",
        "x ~ ''",
        "'' ~ x",
        "x | string",
        "x | upper",
        "x | trim",
        "x | replace('a', 'b')",
        "'a' | replace(x, 'b')",
        "x | join",
        "x | join(y)",
        "x | tojson",
        "x | pprint",
        "x | safe | string",
        "x | escape",
        "x | indent",
        "'%s' | format(x)",
        "'{}'.format(x)",
        "'{a}'.format(a=x)",
        "','.join(x)",
        "x.count(y)",
        "[x, y] | sort",
        "[x, y] | min",
        "[x, y] | max",
        "[x, y] | unique",
        "[x, y] | groupby(0)",
        "t | dictsort",
        "t | dictsort(by='value')",
        "{x: 1}",
        "{x: 1}[y]",
        "{x: 1}.get(y)",
        "x is eq(y)",
        "x is in([y])",
        "x is sameas(y)",
        "x is lower",
        "'a'.startswith(x)",
        "[x] | select('eq', y)",
        "[x] | reject('in', [y])",
        "[t] | selectattr('a', 'equalto', y)",
        "x | map('string') | list",
        "x | map('join') | list",
        "loop.changed(x)",
        "x | sort(attribute=0)",
        "x | sum(start=[])",
        "x == (y if i else 'a')",
        "(x, 1) == (y, 1)",
        "dict(a=x) == dict(a=y)",
        "x | list == y | list",
        "x.index(y)",
        "x | default(y) == y",
        "namespace(a=x).a == y",
        "[x, y] | sort(*[])",
        "x is eq(*[y])",
        "x | string | length",
        "{'a': x} == {'a': y}",
        "x | batch(1) | list == y",
    ] {
        let body = format!("{{% set w = tick() %}}{{% set z = {look} %}}");
        let (met, looks) = met_after(&format!("{hidden}{}", forever(&body)), &[]);
        // Some take no lists; that is an end as well.
        if !matches!((met.as_ref(), looks), (Err(Met::Steps), 2..=LOOKS_MAX) | (Err(Met::Error), 1))
        {
            cheap.push(format!("{look}: {met:?} after {looks} looks"));
        }
    }
    assert!(cheap.is_empty(), "{cheap:#?}");
}

#[test]
fn what_is_nested_without_end_meets_the_limit_of_depth() {
    let nested = |made: &str| {
        format!(
            "{{% set ns = namespace(x=[1]) %}}{}",
            times(9_999, &format!("{{% set ns.x = {made} %}}"))
        )
    };
    for made in [
        "[ns.x]",
        "(ns.x,)",
        "{'a': ns.x}",
        "{(ns.x,): 1}",
        "dict(a=ns.x)",
        "[ns.x] + []",
        "[ns.x] * 1",
        "[ns.x][:]",
        "[ns.x] | reverse",
        "[ns.x] | list",
        "ns.x | batch(9)",
        "ns.x | batch(9) | list",
        "ns.x | slice(1)",
        "{'a': ns.x}.items()",
        "{'a': ns.x} | items",
        "[ns.x] | map('list')",
        "[ns.x] | select",
        "[ns.x] | unique",
        "[ns.x] | sort",
        "namespace(a=[ns.x]).a",
        "[1, ns.x] | last | batch(1)",
    ] {
        let met = met(&nested(made), &[]);
        assert_eq!(met, Err(Met::Depth), "{made}");
    }
    // These stay as deep as they are.
    for made in
        ["ns.x[:]", "ns.x | reverse", "ns.x + []", "ns.x * 1", "ns.x | list", "ns.x | map('int')"]
    {
        let made = times(9, &format!("{{% set ns.x = {made} %}}"));
        let template =
            format!("{{% set ns = namespace(x=[1]) %}}{}{{{{ ns.x | list }}}}", made.repeat(50));
        assert_eq!(met(&template, &[]), Ok("[1]".into()), "{made}");
    }
    // Nothing contains itself.
    for made in [
        "{% set ns.x = ns %}",
        "{% set ns.x = [ns] %}",
        "{% set ns.x = {'a': ns} %}",
        "{% set x = [ns] %}",
        "{% set x = namespace(a=ns) %}",
        "{% set x = dict(a=ns) %}",
        "{% set x = namespace({'a': [ns]}) %}",
    ] {
        let template = format!("{{% set ns = namespace(x=1) %}}{made}{{{{ ns }}}}");
        assert_eq!(met(&template, &[]), Err(Met::Error), "{made}");
    }
    // Straight on, without a loop.
    let straight = format!("{{% set x = 1 %}}{}", "{%set x=[x]%}".repeat(9000));
    assert_eq!(met(&straight, &[]), Err(Met::Depth));
}

#[test]
fn calls_in_calls_end() {
    for template in [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(x) %}{{ f([x]) }}{% endmacro %}{{ f(1) }}",
        "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f() %}{{ caller() }}{% endmacro %}{% macro g() %}{% call f() %}{{ g() }}{% endcall %}{% endmacro %}{{ g() }}",
        "{% for x in [1] recursive %}{{ loop([x]) }}{% endfor %}",
        "{% for x in [1] recursive %}{% set y = loop([x]) %}{% endfor %}",
        "{% include 'chat_template' %}",
        "{% extends 'chat_template' %}",
        "{% import 'chat_template' as x %}",
        "{% block a %}{{ self.a() }}{% endblock %}",
        "{% block a %}{{ super() }}{% endblock %}",
        "{{ debug() }}",
        "{% for x in [1] recursive %}{% block b %}{{ loop([x]) }}{% endblock %}{% endfor %}",
    ] {
        let met = met(template, &[]);
        assert!(met.is_err(), "{template}: {met:?}");
    }
}

/// Methods that were asked for and not called hold their value, and so could nest for ever.
#[test]
fn what_holds_a_value_unseen_meets_the_limit_of_depth() {
    let nested = times(9_999, "{% set ns.x = {'a': ns.x}.items %}");
    assert_eq!(met(&format!("{{% set ns = namespace(x=1) %}}{nested}"), &[]), Err(Met::Depth));
}

/// One step that makes more than all memory.
#[test]
fn no_single_step_makes_more_than_steps_can_pay_for() {
    let content = "messages[0].content";
    for made in [
        "'a' * 1000000000",
        "[1] * 1000000000",
        "(1,) * 1000000000",
        "'%1000000000d' | format(1)",
        "'%.1000000000f' | format(1)",
        "'{:>1000000000}'.format('')",
        "'{:.1000000000f}'.format(1.0)",
        "'{:>{}}'.format('', 1000000000)",
        "'{:>{w}}'.format('', w=1000000000)",
        "'%*d' | format(1000000000, 1)",
        "'x\nx' | indent(1000000000)",
        "'%1000000000d' % 1",
        "'%*d' % (1000000000, 1)",
        "'x'.zfill(1000000000)",
        "'x'.center(1000000000)",
        "'x' | center(1000000000)",
        "'\t'.expandtabs(1000000000)",
        "[[1]] | tojson(indent=CONTENT)",
        "range(99999) | tojson(separators=(CONTENT, ''))",
        "CONTENT | urlencode | urlencode | urlencode",
        "[[1]] | tojson(indent=1000000000)",
        "CONTENT.replace('', CONTENT)",
        "CONTENT.replace('a', CONTENT)",
        "CONTENT | replace('a', CONTENT)",
        "CONTENT | replace('', CONTENT)",
        "CONTENT.join(CONTENT)",
        "CONTENT | join(CONTENT)",
        "range(99999) | join(CONTENT)",
        "CONTENT.join(range(99999) | map('string'))",
        "range(9) | batch(1000000000, 'x') | list",
        "range(9) | slice(1000000000) | list",
        "range(9) | slice(1000000000, 'x') | list",
        "range(99999) | map('batch', 1000000000, 1) | list",
        "([1] * 99999) * 99999",
        "range(1000000000000)",
        "range(99999) | list * 99999",
        "2 ** 1000000000",
        "(CONTENT | list) * 999",
        "1.5 | round(1000000000)",
        "'1' * 99999 | int",
        "CONTENT | indent(99999, true, true)",
        "(CONTENT ~ '\n') * 99 | indent(99999, true)",
        "CONTENT.split('a') * 9999",
        "CONTENT | upper * 9999",
        "strftime_now(CONTENT * 50) * 50",
        "range(99999) | zip(*(range(99999) | list)) | list",
    ] {
        let template = format!("{{% set x = {} %}}{{{{ x }}}}", made.replace("CONTENT", content));
        let met = met(&template, &long());
        assert!(
            met.as_ref().map_or(true, |text| text.len() <= 64 * STEPS as usize),
            "{made}: {} bytes",
            met.unwrap().len()
        );
    }
}

#[test]
fn a_text_that_nests_or_goes_on_for_ever_is_refused_when_the_model_is_loaded() {
    let refused = |source: String| {
        let shown: String = source.chars().take(60).collect();
        let met = met(&source, &[]);
        assert_eq!(met, Err(Met::Error), "{shown}");
    };
    let many = 100_000;
    for [open, inner, close] in [
        ["[", "", "]"],
        ["(", "1", ")"],
        ["{1:", "1", "}"],
        ["f(", "", ")"],
        ["x[", "1", "]"],
        ["-", "1", ""],
        ["not ", "1", ""],
        ["1+", "1", ""],
        ["1~", "1", ""],
        ["1**", "1", ""],
        ["1<", "1", ""],
        ["1 if x else ", "1", ""],
        ["1 or ", "1", ""],
        ["1 in ", "1", ""],
    ] {
        refused(format!("{{{{ {}{inner}{} }}}}", open.repeat(many), close.repeat(many)));
        // As long as is allowed, and no longer.
        let longest = (BYTES_MAX - 99) / (open.len() + close.len());
        let source = format!("{{{{ {}{inner}{} }}}}", open.repeat(longest), close.repeat(longest));
        assert!(source.len() <= BYTES_MAX);
        refused(source);
    }
    for tail in [".x", "[1]", "|list", " is defined", "()", "[:]", " if x"] {
        refused(format!("{{{{ x{} }}}}", tail.repeat((BYTES_MAX - 99) / tail.len())));
    }
    for [open, close] in [
        ["{%if x%}", "{%endif%}"],
        ["{%for x in y%}", "{%endfor%}"],
        ["{%with%}", "{%endwith%}"],
        ["{%filter trim%}", "{%endfilter%}"],
        ["{%set x%}", "{%endset%}"],
        ["{%macro f()%}", "{%endmacro%}"],
        ["{%block b%}", "{%endblock%}"],
        ["{%call f()%}", "{%endcall%}"],
    ] {
        refused(format!("{}{}", open.repeat(5000), close.repeat(5000)));
    }
    refused(format!("{{% if x %}}{}{{% endif %}}", "{%elif x%}".repeat(10_000)));
    refused("a".repeat(BYTES_MAX + 1));
    // Just below the limits: read, and dropped again.
    for source in [
        format!("{{{{ 0{} }}}}", "+1".repeat(TAG_MAX / 2 - 9)),
        format!("{{{{ '{}' }}}}", "a".repeat(BYTES_MAX - 99)),
        format!("{{{{ {}1 }}}}", "-".repeat(TAG_MAX - 9)),
        format!("{{{{ {}1 }}}}", "not ".repeat(TAG_MAX - 9)),
        format!("{{{{ ''{} }}}}", "|list".repeat(TAG_MAX / 2 - 9)),
        format!("{{% if x %}}{}{{% endif %}}", "{%elif x%}".repeat(BRANCHES_MAX)),
        format!("{{{{ [{}] }}}}", "1,".repeat(TAG_MAX / 2 - 9)),
    ] {
        let met = met(&source, &[]);
        assert!(met.is_ok(), "{}: {met:?}", source.chars().take(60).collect::<String>());
    }
}

#[test]
fn many_messages_are_refused_before_they_are_rendered() {
    let template = template_of("{{ 1 / 0 }}").unwrap();
    let options = ChatOptions::default();
    let render = |messages: &[Message]| template.render(messages, &options, 100, 1000).unwrap_err();
    let too_long = |tokens_min| RenderError::TooLong { tokens_min, tokens_max: 100 };
    assert_eq!(render(&vec![message("u", ""); 101]), too_long(101));
    assert_eq!(render(&[message("u", &"a".repeat(1000))]), too_long(101));
    assert_eq!(render(&[message(&"a".repeat(1001), "")]), too_long(101));
    let named = Message { name: Some("a".repeat(1001)), ..message("u", "") };
    assert_eq!(render(&[named]), too_long(101));
    assert!(matches!(render(&vec![message("u", ""); 100]), RenderError::Template(_)));
}

#[test]
fn what_a_template_says_to_the_client_is_bounded() {
    let said = render("{{ raise_exception('é' * 100000) }}", &[]).unwrap_err();
    assert_eq!(said, RenderError::Refused("é".repeat(REFUSAL_LETTERS_MAX)));
}

#[test]
fn a_long_chat_stays_within_the_budget() {
    let many: Vec<_> = (0..5000).map(|_| message("user", "a few words of a message")).collect();
    assert!(render(SMOLLM2, &many).is_ok());
    assert!(render(SMOLLM2, &[message("user", &"a".repeat(8 << 20))]).is_ok());
}

/// Widths that are together 2^64 were none, and the text as long as the first.
#[test]
fn widths_that_are_together_beyond_all_bounds_are_paid_for() {
    for format in [
        "'%1099511627776.18446742974197923840s' % 'x'",
        "'%1099511627776.18446742974197923840s' | format('x')",
    ] {
        let met = met(&format!("{{{{ {format} }}}}"), &[]);
        assert!(matches!(met, Err(Met::Steps | Met::Error)), "{format}");
    }
}
