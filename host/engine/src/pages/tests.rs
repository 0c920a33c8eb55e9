use super::*;
use crate::PrefixSharing;

const PAGE: u32 = 4;

fn pages(count: u32) -> Pages {
    Pages::new(count, PAGE, true)
}

/// A prompt of this many tokens; `end` sets its last one apart.
fn prompt(tokens: u32, end: u32) -> Vec<TokenId> {
    (0..tokens - 1).chain([1000 + end]).collect()
}

fn nothing() -> PrefixMatch {
    nothing_of("")
}

fn nothing_of(tenant: &str) -> PrefixMatch {
    PrefixMatch::nothing(PrefixSharing::Tenant.scope(tenant))
}

fn leased(pages: &Pages, history: &[TokenId]) -> Lease {
    pages.lease(history, &mut nothing())
}

fn computed(pages: &Pages, history: &[TokenId]) -> Lease {
    let mut lease = leased(pages, history);
    assert!(lease.extend(history.len()));
    lease.mark_computed(history);
    lease
}

fn audit(leased: u32, idle: u32, free: u32) -> PageAudit {
    PageAudit { leased, idle, free }
}

#[test]
fn a_lease_gives_back_what_it_took() {
    let pages = pages(8);
    let mut lease = leased(&pages, &prompt(5, 0));
    assert!(lease.extend(5));
    assert_eq!(pages.audit(), audit(2, 0, 6));
    assert!(!lease.extend(8 * 4 + 1), "there are no 9 pages");
    assert_eq!(pages.audit(), audit(2, 0, 6), "and none of them was taken");
    drop(lease);
    assert_eq!(pages.audit(), audit(0, 0, 8));
}

#[test]
fn who_begins_alike_shares_the_full_pages_while_they_are_held_and_after() {
    let pages = pages(8);
    let first = computed(&pages, &prompt(10, 1));
    let second = leased(&pages, &prompt(10, 2));
    assert_eq!(second.cached_tokens(), 8);
    assert_eq!(second.pages(), &first.pages()[..2]);
    assert_eq!((first.exclusive_pages(), second.exclusive_pages()), (1, 0));
    drop((first, second));
    assert_eq!(pages.audit(), audit(0, 2, 6));
    assert_eq!(leased(&pages, &prompt(30, 3)).cached_tokens(), 8);
}

#[test]
fn no_page_is_shared_with_another_tenant_while_it_is_held_or_after() {
    let pages = pages(12);
    let mine = prompt(10, 1);
    let held = computed(&pages, &mine);
    let cached = |tenant| pages.lease(&mine, &mut nothing_of(tenant)).cached_tokens();
    assert_eq!([cached(""), cached("acme"), cached("acm"), cached("globex")], [8, 0, 0, 0]);
    drop(held);
    assert_eq!([cached(""), cached("acme")], [8, 0]);
    // What another computes for itself is its own, of the same tokens.
    let mut theirs = pages.lease(&mine, &mut nothing_of("acme"));
    assert!(theirs.extend(mine.len()));
    theirs.mark_computed(&mine);
    drop(theirs);
    assert_eq!([cached(""), cached("acme"), cached("globex")], [8, 8, 0]);
    assert_eq!(pages.audit(), audit(0, 4, 8), "the two are two");
}

#[test]
fn where_all_share_it_does_not_matter_whose_page_it_is() {
    let pages = pages(8);
    let found = |tenant| PrefixMatch::nothing(PrefixSharing::All.scope(tenant));
    let mut first = pages.lease(&[], &mut found("acme"));
    assert!(first.extend(10));
    first.mark_computed(&prompt(10, 1));
    assert_eq!(pages.lease(&prompt(10, 2), &mut found("globex")).cached_tokens(), 8);
}

#[test]
fn a_page_is_shared_only_behind_the_same_pages() {
    let pages = pages(8);
    drop(computed(&pages, &[1, 2, 3, 4, 5, 6, 7, 8]));
    assert_eq!(leased(&pages, &[9, 9, 9, 9, 5, 6, 7, 8, 0]).cached_tokens(), 0);
    assert_eq!(leased(&pages, &[1, 2, 3, 4, 5, 6, 7, 9, 0]).cached_tokens(), 4);
}

#[test]
fn the_last_token_is_always_left_to_compute() {
    let pages = pages(8);
    drop(computed(&pages, &[1, 2, 3, 4]));
    assert_eq!(leased(&pages, &[1, 2, 3, 4]).cached_tokens(), 0);
    assert_eq!(leased(&pages, &[1, 2, 3, 4, 5]).cached_tokens(), 4);
}

#[test]
fn the_least_recently_used_page_is_given_away_and_the_end_of_a_prompt_before_its_beginning() {
    let pages = pages(4);
    drop(computed(&pages, &prompt(8, 1)));
    let other: Vec<TokenId> = (50..58).collect();
    drop(computed(&pages, &other));
    drop(leased(&pages, &prompt(9, 1))); // its first page is the most recently used now
    let mut lease = leased(&pages, &[]);
    assert!(lease.extend(2 * PAGE as usize));
    assert_eq!(leased(&pages, &prompt(9, 1)).cached_tokens(), 4);
    assert_eq!(leased(&pages, &[50, 51, 52, 53, 0]).cached_tokens(), 4);
    assert_eq!(leased(&pages, &[50, 51, 52, 53, 54, 55, 56, 57, 0]).cached_tokens(), 4);
}

#[test]
fn what_two_compute_at_once_is_known_once() {
    let pages = pages(8);
    let (first, second) = (leased(&pages, &prompt(9, 1)), leased(&pages, &prompt(9, 1)));
    for mut lease in [first, second] {
        assert!(lease.extend(9));
        lease.mark_computed(&prompt(9, 1));
    }
    assert_eq!(pages.audit(), audit(0, 2, 6));
}

#[test]
fn what_a_new_request_lacks_is_what_it_shares_with_nobody() {
    let pages = pages(8);
    let first = computed(&pages, &prompt(10, 1));
    let second = leased(&pages, &prompt(10, 2));
    assert_eq!((second.lacks(10), pages.available()), (1, 5), "two are leased by the first");
    assert_eq!(first.exclusive_pages(), 1, "and do not come free with it");
    drop((first, second));
    let third = leased(&pages, &prompt(10, 2));
    assert_eq!((third.lacks(10), pages.available()), (1, 6), "the idle ones are its own now");
}

#[test]
fn what_is_lost_is_forgotten_also_by_those_who_hold_it() {
    let pages = pages(8);
    let held = computed(&pages, &prompt(8, 1));
    drop(computed(&pages, &[50, 51, 52, 53]));
    pages.clear_contents();
    assert_eq!(leased(&pages, &prompt(9, 1)).cached_tokens(), 0);
    assert_eq!(pages.audit(), audit(2, 0, 6));
    drop(held);
    assert_eq!(pages.audit(), audit(0, 0, 8));
}

#[test]
fn a_pool_that_does_not_remember_shares_nothing() {
    let pages = Pages::new(8, PAGE, false);
    drop(computed(&pages, &prompt(10, 1)));
    assert_eq!(leased(&pages, &prompt(10, 2)).cached_tokens(), 0);
    assert_eq!(pages.audit(), audit(0, 0, 8));
}

#[test]
fn what_was_found_before_is_not_looked_up_again_and_is_always_what_is_known_now() {
    let pages = pages(8);
    let mine = prompt(17, 1);
    let mut found = nothing();
    let mut look = || {
        let prospect = pages.demand(&mine, &mut found);
        let anew = pages.demand(&mine, &mut nothing());
        assert_eq!(prospect, anew, "whatever was found before");
        let lease = leased(&pages, &mine);
        assert_eq!((lease.lacks(17), pages.available()), (anew.lacks, anew.available));
        drop(lease);
        prospect.lacks
    };
    assert_eq!(look(), 5, "nothing is known");
    let other = computed(&pages, &prompt(9, 2));
    assert_eq!(look(), 3, "two pages of another's, which runs");
    drop(other);
    assert_eq!(look(), 3, "and has gone");
    // Six of eight pages: the second of those two is given away, and the first after it.
    let mut hungry = leased(&pages, &[]);
    assert!(hungry.extend(7 * PAGE as usize));
    assert_eq!(look(), 4);
    drop(hungry);
    drop(computed(&pages, &mine));
    assert_eq!(look(), 1, "all but the last token");
    pages.clear_contents();
    assert_eq!(look(), 5);
}

#[test]
fn looking_again_costs_one_look_into_the_index() {
    let pages = pages(300);
    drop(computed(&pages, &prompt(1001, 1)));
    let mine = prompt(1100, 2);
    let mut found = nothing();
    let looked_up = || pages.0.borrow().index.looked_up.get();
    let begun = looked_up();
    pages.demand(&mine, &mut found);
    assert_eq!(looked_up() - begun, 251, "each page, and the first that is unknown");
    for _ in 0..100 {
        pages.demand(&mine, &mut found);
    }
    assert_eq!(looked_up() - begun, 251 + 100);
}
