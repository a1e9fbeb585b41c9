//! A well-behaved client, who notices what others do to the server.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::Client;

/// How long answers took.
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn quantile(&self, part: f64) -> Duration {
        self.0[((self.0.len() - 1) as f64 * part) as usize]
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }
}

/// Between two pings, so that these are no load themselves.
const PAUSE: Duration = Duration::from_millis(1);

/// Pings until it is told to stop, and at least a thousand times.
pub(crate) fn ping(server: SocketAddr, stop: &AtomicBool) -> Times {
    let mut client = Client::connect(server);
    client.socket.get_ref().set_nodelay(true).expect("nodelay");
    let mut times = Vec::new();
    while !stop.load(Ordering::Relaxed) || times.len() < 1000 {
        thread::sleep(PAUSE);
        let start = Instant::now();
        client.send("ping\n");
        // What is broadcast reaches it too.
        while client.line() != "pong" {}
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Times(times)
}

pub(crate) fn ping_for(server: SocketAddr, time: Duration) -> Times {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let pings = scope.spawn(|| ping(server, &stop));
        thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        pings.join().expect("the well-behaved client is served")
    })
}
