//! The servers: lines in, a task for each on a pool of threads, its result out in whatever order.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;

use backroom::{Framing, Server};

pub(crate) const NAMES: [&str; 4] = ["backroom", "tokio", "tokio, limited", "two threads"];

/// Serves on a free port, prints it, and goes on until the process is killed.
pub(crate) fn serve(name: &str, task_workers: usize) -> anyhow::Result<()> {
    match name {
        "backroom" => backroom(task_workers),
        "tokio" => tokio_server(tokio::runtime::Builder::new_multi_thread().enable_io().build()?),
        "tokio, limited" => tokio_server(
            tokio::runtime::Builder::new_multi_thread().max_blocking_threads(task_workers).enable_io().build()?,
        ),
        "two threads" => two_threads(task_workers),
        _ => anyhow::bail!("no server is called {name:?}"),
    }
}

/// The task, the same for all.
fn work(line: &str) -> String {
    format!("{line} -> OK\n")
}

fn to_line(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn backroom(task_workers: usize) -> anyhow::Result<()> {
    let server = Server::builder()
        .task_worker_num(task_workers)
        .max_connections(9_200)
        .framing(Framing::lines())
        .on_receive(|conn, line| {
            conn.task(to_line(line))?;
            Ok(())
        })
        .on_task(|_, line: String| Ok(work(&line)))
        .on_finish(|conn, done| Ok(conn.send(done.into_result()?)?))
        .bind("127.0.0.1:0")?;
    println!("{}", server.local_addr());
    let _ = server.run()?;
    Ok(())
}

/// A task that reads and one that writes per connection; `spawn_blocking` for the work; everything that is ready goes
/// out in one write. Run once with the runtime's defaults, under which up to 512 threads do the work, and once with
/// as many as the others have, which is the faster here.
fn tokio_server(runtime: tokio::runtime::Runtime) -> anyhow::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        loop {
            let (client, _) = listener.accept().await?;
            client.set_nodelay(true)?;
            let (mut reader, mut writer) = client.into_split();
            let (results, mut to_write) = tokio::sync::mpsc::unbounded_channel::<String>();
            tokio::spawn(async move {
                let mut input = Lines::default();
                while let Ok(1..) = reader.read(input.room()).await.map(|n| input.filled(n)) {
                    while let Some(line) = input.next_line() {
                        let line = to_line(line);
                        let results = results.clone();
                        tokio::task::spawn_blocking(move || {
                            let _ = results.send(work(&line));
                        });
                    }
                }
            });
            tokio::spawn(async move {
                let (mut batch, mut bytes) = (Vec::new(), Vec::new());
                while to_write.recv_many(&mut batch, 256).await > 0 {
                    bytes.clear();
                    batch.drain(..).for_each(|result| bytes.extend_from_slice(result.as_bytes()));
                    if writer.write_all(&bytes).await.is_err() {
                        break;
                    }
                }
            });
        }
    })
}

/// What one writes by hand: a thread that reads and one that writes per connection, and `threadpool` for the work.
fn two_threads(task_workers: usize) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    let pool = threadpool::ThreadPool::new(task_workers);
    for client in listener.incoming() {
        let client = client?;
        client.set_nodelay(true)?;
        let writer = client.try_clone()?;
        let (results, to_write) = mpsc::channel::<String>();
        let pool = pool.clone();
        thread::Builder::new().stack_size(256 * 1024).spawn(move || read_lines(client, &results, &pool))?;
        thread::Builder::new().stack_size(256 * 1024).spawn(move || write_results(writer, &to_write))?;
    }
    Ok(())
}

fn read_lines(mut client: TcpStream, results: &mpsc::Sender<String>, pool: &threadpool::ThreadPool) {
    let mut input = Lines::default();
    while let Ok(1..) = client.read(input.room()).map(|n| input.filled(n)) {
        while let Some(line) = input.next_line() {
            let line = to_line(line);
            let results = results.clone();
            pool.execute(move || {
                let _ = results.send(work(&line));
            });
        }
    }
}

fn write_results(mut client: TcpStream, to_write: &mpsc::Receiver<String>) -> Option<io::Error> {
    let mut bytes = Vec::new();
    while let Ok(result) = to_write.recv() {
        bytes.clear();
        bytes.extend_from_slice(result.as_bytes());
        while let Ok(result) = to_write.try_recv() {
            bytes.extend_from_slice(result.as_bytes());
        }
        if let Err(error) = client.write_all(&bytes) {
            return Some(error);
        }
    }
    None
}

/// A read buffer cut at `\n`, for the rivals and the load.
#[derive(Default)]
pub(crate) struct Lines {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Lines {
    pub(crate) fn room(&mut self) -> &mut [u8] {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        if self.end == self.buffer.len() {
            self.buffer.resize((self.buffer.len() * 2).max(4 * 1024), 0);
        }
        &mut self.buffer[self.end..]
    }

    pub(crate) fn filled(&mut self, n: usize) -> usize {
        self.end += n;
        n
    }

    pub(crate) fn next_line(&mut self) -> Option<&[u8]> {
        let rest = &self.buffer[self.start..self.end];
        let len = memchr::memchr(b'\n', rest)?;
        self.start += len + 1;
        Some(&rest[..len])
    }
}
