//! What the example servers print and log.
//!
//! `println` waits where nobody reads what is printed, and panics where nobody can: in a callback it holds a client up or
//! cuts it off, and in a shutdown the program. So each stream has a thread that writes; what it falls behind with is left
//! out and counted.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

pub(crate) static STDOUT: LazyLock<Output> = LazyLock::new(|| Output::to(io::stdout()));
pub(crate) static STDERR: LazyLock<Output> = LazyLock::new(|| Output::to(io::stderr()));

/// How many lines may wait to be written.
const MAX_WAITING: usize = 10_000;

/// A stream that never blocks and never fails.
#[derive(Clone)]
pub(crate) struct Output {
    messages: Sender<Message>,
    left_out: Arc<AtomicU64>,
}

enum Message {
    Text(Vec<u8>),
    /// Say when all before this is written.
    Flush(Sender<()>),
}

/// Prints a line to stdout.
macro_rules! say {
    ($($text:tt)*) => { $crate::common::output::STDOUT.line(format!($($text)*)) };
}
pub(crate) use say;

impl Output {
    fn to(stream: impl Write + Send + 'static) -> Output {
        let (messages, waiting) = bounded(MAX_WAITING);
        // Without the thread, all is left out.
        let _ = thread::Builder::new().name("output".to_owned()).spawn(|| write_all(stream, waiting));
        Output { messages, left_out: Arc::default() }
    }

    pub(crate) fn line(&self, text: String) {
        self.send((text + "\n").into_bytes());
    }

    fn send(&self, text: Vec<u8>) {
        let left_out = self.left_out.swap(0, Ordering::Relaxed);
        let text = match left_out {
            0 => text,
            count => [format!("({count} lines are left out here)\n").into_bytes(), text].concat(),
        };
        if self.messages.try_send(Message::Text(text)).is_err() {
            self.left_out.fetch_add(left_out + 1, Ordering::Relaxed);
        }
    }

    /// Waits until all so far is written, or the time is over.
    pub(crate) fn flush_until(&self, end: Instant) {
        let (say, said) = bounded(1);
        if self.messages.send_deadline(Message::Flush(say), end).is_ok() {
            let _ = said.recv_deadline(end);
        }
    }
}

/// For the logger, which writes whole lines.
impl Write for Output {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.send(text.to_vec());
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A stream that takes nothing now may take something later, so no error ends this.
fn write_all(mut stream: impl Write, messages: Receiver<Message>) {
    for message in messages {
        match message {
            Message::Text(text) => drop(stream.write_all(&text).and_then(|()| stream.flush())),
            Message::Flush(say) => drop(say.send(())),
        }
    }
}

/// Waits at the end of the program until all is written, but not for long: there may be nobody who reads it.
pub(crate) struct FlushAtEnd;

impl Drop for FlushAtEnd {
    fn drop(&mut self) {
        let end = Instant::now() + Duration::from_secs(1);
        STDOUT.flush_until(end);
        STDERR.flush_until(end);
    }
}
