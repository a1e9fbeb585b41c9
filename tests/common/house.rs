//! A server whose connections do what the test says, each on its own worker.

use std::io::{BufReader, Read};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use backroom::{
    Connection, ConnectionId, ConnectionInfo, Finished, Framing, Remote, Server, ServerBuilder, ServerHandle,
    SocketOptions, TaskId, stage,
};
use socket2::{Domain, Socket, Type};

use super::{Client, Events, Gate, PATIENCE, Running, events, run};

/// What its tasks do.
pub type Job = Box<dyn FnOnce(&ServerHandle, ConnectionId) + Send>;
pub type Conn = Connection<Job, ()>;
pub type Builder = ServerBuilder<Job, (), (), (), stage::Callbacks>;

/// What its callbacks were told, but for `on_connect`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Frame(String),
    High,
    Low,
    Closed(String),
}

/// Its frames are lines.
pub struct House {
    pub server: Running,
    arrived: Events<(ConnectionId, Remote<Job, ()>)>,
    told: Events<Told>,
}

pub fn job(job: impl FnOnce(&ServerHandle, ConnectionId) + Send + 'static) -> Job {
    Box::new(job)
}

impl House {
    pub fn open(configure: impl FnOnce(Builder) -> Builder) -> House {
        House::open_with(configure, |_| ())
    }

    /// The same with something to do in `on_connect`.
    pub fn open_with(
        configure: impl FnOnce(Builder) -> Builder,
        on_connect: impl Fn(&mut Conn) + Send + Sync + 'static,
    ) -> House {
        let (arrive, arrived) = events();
        let (tell, told) = events();
        let tell = Arc::new(move |what| Ok(tell.send(what)?));
        let (high, low, frame, closed) = (Arc::clone(&tell), Arc::clone(&tell), Arc::clone(&tell), tell);
        let builder = Server::builder()
            .framing(Framing::lines())
            .on_connect(move |conn: &mut Conn| {
                on_connect(conn);
                Ok(arrive.send((conn.id(), conn.remote()))?)
            })
            .on_receive(move |_, line| frame(Told::Frame(String::from_utf8_lossy(line).into_owned())))
            .on_high_watermark(move |_| high(Told::High))
            .on_low_watermark(move |_| low(Told::Low))
            .on_task(|cx, job| Ok(job(cx.server(), cx.connection_id())))
            .on_close(move |_, reason| closed(Told::Closed(format!("{reason:?}"))));
        House { server: run(configure(builder).bind("127.0.0.1:0").unwrap()), arrived, told }
    }

    pub fn handle(&self) -> &ServerHandle {
        &self.server.handle
    }

    pub fn guest(&self) -> Guest {
        self.welcome(self.server.client())
    }

    /// One that has connected just now, and nobody else meanwhile.
    pub fn welcome(&self, client: Client) -> Guest {
        let (id, remote) = self.arrived.next();
        Guest { client, id, remote }
    }

    /// What its callbacks are told next.
    pub fn told(&self) -> Told {
        self.told.next()
    }

    pub fn told_so_far(&self) -> Vec<Told> {
        self.told.all_so_far()
    }

    /// Why the next connection that closes did so, whatever else the callbacks are told before.
    pub fn closed(&self) -> String {
        loop {
            if let Told::Closed(reason) = self.told() {
                return reason;
            }
        }
    }
}

/// A client, and the other end of its connection.
pub struct Guest {
    pub client: Client,
    pub id: ConnectionId,
    pub remote: Remote<Job, ()>,
}

impl Guest {
    pub fn info(&self) -> ConnectionInfo {
        self.remote.server().connection(self.id).expect("it is open")
    }

    /// Does that on the worker of the connection, in turn with the rest of its mail.
    pub fn on_worker<X: Send + 'static>(&self, run: impl FnOnce(&mut Conn) -> X + Send + 'static) -> X {
        let (done, result) = events();
        let run = move |conn: &mut Conn| Ok(done.send(run(conn)).expect("the test waits"));
        self.remote.with_connection(self.id, run).expect("it is open");
        result.next()
    }

    /// Submits a task and returns; the closure runs when it is done.
    pub fn task_then(
        &self,
        task: Job,
        finish: impl FnOnce(&mut Conn) -> anyhow::Result<()> + Send + 'static,
    ) -> TaskId {
        self.on_worker(|conn| {
            let finish = |conn: &mut Conn, done: Finished<()>| {
                done.into_result()?;
                finish(conn)
            };
            conn.task_then(task, finish).unwrap()
        })
    }

    /// Returns when the worker has seen to all mail so far, and has been where it would read since.
    pub fn turns(&self) {
        let (done, is_done) = events();
        self.on_worker(move |conn| {
            // The second is due in another turn of its loop than the first.
            conn.after(Duration::ZERO, move |conn| {
                conn.after(Duration::from_millis(1), move |_| Ok(done.send(())?));
                Ok(())
            });
        });
        is_done.next();
    }

    /// Keeps the worker inside a callback until the gate is opened.
    pub fn keep_busy(&self) -> Gate {
        let (inside, is_inside) = events();
        let gate = Gate::default();
        let held = gate.clone();
        let run = move |_: &mut Conn| {
            inside.send(())?;
            Ok(held.pass())
        };
        self.remote.with_connection(self.id, run).expect("it is open");
        is_inside.next();
        gate
    }
}

/// As little as the kernel keeps for a socket.
const SMALL: usize = 4096;

/// For connections whose clients are slow: without it the kernel takes some MiB for them.
pub fn small_buffers() -> SocketOptions {
    SocketOptions::new().send_buffer(SMALL)
}

/// A client for which the kernel takes little.
pub fn slow_client(addr: SocketAddr) -> Client {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(SMALL).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
    socket.connect(&addr.into()).unwrap();
    Client { socket: BufReader::new(socket.into()) }
}

/// Long enough to tell sooner from later.
pub const SHORT: Duration = Duration::from_millis(100);

impl Client {
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.socket.read_exact(&mut bytes).expect("so many bytes");
        bytes
    }

    /// What comes before the end, and whether that is a reset.
    pub fn until_closed(&mut self) -> (Vec<u8>, bool) {
        let mut bytes = Vec::new();
        match self.socket.read_to_end(&mut bytes) {
            Ok(_) => (bytes, false),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
                (bytes, true)
            }
        }
    }
}
