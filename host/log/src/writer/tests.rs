use std::io::{BufRead, BufReader, PipeReader, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use interlock_metrics::Registry;
use rustix::fs::{OFlags, fcntl_setfl};

use super::*;
use crate::{LogMetrics, Output};

/// Nothing here takes long, unless it hangs.
const LONG: Duration = Duration::from_secs(60);

struct Marks;

impl Losses for Marks {
    fn mark(&self, lines: u64, why: &str) -> Vec<u8> {
        format!("{lines} lost: {why}\n").into_bytes()
    }
}

/// A pipe.
fn pipe() -> (PipeReader, Output) {
    let (reader, writer) = io::pipe().expect("a pipe");
    (reader, Output::new(writer.into()))
}

/// A pipe that is full, and how many bytes are to be read before there is room.
fn full_pipe() -> (PipeReader, Output, usize) {
    let (reader, mut writer) = io::pipe().expect("a pipe");
    let mut filled = 0;
    fcntl_setfl(&writer, OFlags::NONBLOCK).expect("its flags can be set");
    for piece in [4096, 1] {
        while let Ok(some) = writer.write(&vec![b'.'; piece]) {
            filled += some;
        }
    }
    fcntl_setfl(&writer, OFlags::empty()).expect("its flags can be set");
    (reader, Output::new(writer.into()), filled)
}

fn number(at: u64) -> Vec<u8> {
    format!("{at:099}\n").into_bytes()
}

/// Checks that lines are numbers in order, but for gaps that are marked and as long as they say;
/// the number after the last, and how many were lost.
fn in_order(lines: impl Iterator<Item = String>) -> (u64, u64) {
    let (mut next, mut lost) = (0, 0);
    for line in lines {
        match line.split_once(" lost: ") {
            Some((gap, why)) => {
                assert_eq!(why, UNREAD);
                let gap: u64 = gap.parse().expect("a number");
                (next, lost) = (next + gap, lost + gap);
            }
            None => {
                assert_eq!(line.len(), 99, "{line}");
                assert_eq!(line.parse(), Ok(next), "a gap that nobody marked");
                next += 1;
            }
        }
    }
    (next, lost)
}

#[test]
fn a_reader_who_does_not_read_holds_up_nobody_and_what_was_lost_is_said_in_its_place() {
    let (mut reader, out, filled) = full_pipe();
    let registry = Registry::new();
    let metrics = LogMetrics::register(&registry);
    let writer = LineWriter::start("lines", out, 16_000, Marks).expect("a thread");
    // One that waited for the reader would wait for ever.
    (0..2000).for_each(|at| writer.push(&number(at)));
    // What was lost before somebody counts is counted.
    writer.count_in(metrics.lines_dropped.clone());
    let first = metrics.lines_dropped.get();
    assert_eq!(first, 2000 - 160, "lost");
    assert!(writer.is_full());
    assert!(!writer.flush(Duration::from_millis(1)), "nobody read it");

    let reading = thread::spawn(move || {
        reader.read_exact(&mut vec![0; filled]).expect("what filled it");
        in_order(BufReader::new(reader).lines().map(|line| line.expect("lines")))
    });
    assert!(writer.flush(LONG), "somebody reads");
    (2000..2100).for_each(|at| writer.push(&number(at)));
    assert!(writer.flush(LONG));
    drop(writer);
    assert_eq!(reading.join().expect("in order"), (2100, first));
    assert_eq!(metrics.lines_dropped.get(), first);
}

#[test]
fn what_many_threads_say_against_a_slow_reader_is_whole_lines_and_marked_gaps() {
    let (reader, out) = pipe();
    let writer = LineWriter::start("lines", out, 8 * 1024, Marks).expect("a thread");
    let reading = thread::spawn(move || {
        let (mut told, mut lost) = (0, 0);
        for line in BufReader::new(reader).lines() {
            let line = line.expect("lines");
            match line.split_once(" lost: ") {
                Some((gap, _)) => lost += gap.parse::<u64>().expect("a number"),
                None => {
                    assert_eq!(line.len(), 99, "{line}");
                    told += 1;
                }
            }
        }
        told + lost
    });
    thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| (0..2500).for_each(|at| writer.push(&number(at))));
        }
    });
    assert!(writer.flush(LONG));
    drop(writer);
    assert_eq!(reading.join().expect("whole lines"), 10_000);
}

#[test]
fn memory_has_the_bound_that_was_set_and_is_given_back() {
    let (mut reader, out, _) = full_pipe();
    let writer = LineWriter::start("lines", out, 1 << 20, Marks).expect("a thread");
    (0..50_000).for_each(|at| writer.push(&number(at)));
    let held = |queue: &LineQueue| queue.bytes.len() + queue.writing;
    assert_eq!(held(&writer.shared.queue()), (1 << 20) / 100 * 100);
    let reading = thread::spawn(move || reader.read_to_end(&mut Vec::new()));
    assert!(writer.flush(LONG), "somebody reads");
    // Two rounds, since two buffers take turns.
    for _ in 0..2 {
        writer.push(b"and on\n");
        assert!(writer.flush(LONG));
    }
    assert!(writer.shared.queue().bytes.capacity() <= KEPT);
    drop(writer);
    reading.join().expect("no panic").expect("it can be read");
}

#[test]
fn a_line_longer_than_the_bound_is_said_to_be_missing() {
    let (reader, out) = pipe();
    let writer = LineWriter::start("lines", out, 64, Marks).expect("a thread");
    writer.push(&number(0));
    assert!(writer.flush(LONG));
    drop(writer);
    assert_eq!(io::read_to_string(reader).expect("text"), format!("1 lost: {UNREAD}\n"));
}

#[test]
fn a_pipe_that_says_not_now_loses_no_line() {
    let (reader, writer) = io::pipe().expect("a pipe");
    // As a process does that shares our stderr.
    fcntl_setfl(&writer, OFlags::NONBLOCK).expect("its flags can be set");
    let writer =
        LineWriter::start("lines", Output::new(writer.into()), 1 << 20, Marks).expect("a thread");
    (0..2000).for_each(|at| writer.push(&number(at)));
    let reading = thread::spawn(move || {
        in_order(BufReader::new(reader).lines().map(|line| line.expect("lines")))
    });
    assert!(writer.flush(LONG));
    drop(writer);
    assert_eq!(reading.join().expect("in order"), (2000, 0));
}

/// A disk that is full now and then: it takes what the test gives room for.
struct Disk {
    room: Receiver<usize>,
    written: SyncSender<Vec<u8>>,
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.room.recv().expect("the test says how much") {
            0 => Err(ErrorKind::StorageFull.into()),
            room => {
                let some = bytes.len().min(room);
                self.written.send(bytes[..some].to_vec()).expect("the test looks at it");
                Ok(some)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Told(SyncSender<String>);

impl Losses for Told {
    fn began(&self, why: &str) {
        self.0.send(format!("began: {why}")).expect("the test listens");
    }

    fn mark(&self, lines: u64, _why: &str) -> Vec<u8> {
        format!("-{lines}\n").into_bytes()
    }

    fn ended(&self, lines: u64) {
        self.0.send(format!("ended: {lines}")).expect("the test listens");
    }
}

#[test]
fn a_full_disk_is_told_of_once_and_later_lines_begin_a_line() {
    let (give, room) = sync_channel(16);
    let (written, took) = sync_channel(16);
    let (tell, told) = sync_channel(16);
    let writer = LineWriter::start("lines", Disk { room, written }, 1 << 20, Told(tell));
    let writer = writer.expect("a thread");
    let full = ErrorKind::StorageFull.to_string();
    // Half of the first line, and no more.
    give.send(2).unwrap();
    give.send(0).unwrap();
    writer.push(b"first\n");
    assert!(writer.flush(LONG));
    assert_eq!(told.recv().unwrap(), format!("began: {full}"));
    // Not even the end of the line.
    give.send(0).unwrap();
    writer.push(b"second\nthird\n");
    assert!(writer.flush(LONG));
    for _ in 0..3 {
        give.send(100).unwrap();
    }
    writer.push(b"fourth\n");
    assert!(writer.flush(LONG));
    assert_eq!(told.recv().unwrap(), "ended: 3");
    assert!(told.try_recv().is_err(), "told of once");
    let text: Vec<u8> = took.try_iter().flatten().collect();
    assert_eq!(String::from_utf8(text).unwrap(), "fi\n-3\nfourth\n");
}
