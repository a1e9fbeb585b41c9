//! The servers, each as its library would have it written: lines in, a task for each on a pool of threads, its result
//! out in whatever order. Each serves on a free port, prints it, and goes on until the process is killed.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;

use backroom::{Framing, ServerBuilder};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};

/// The task, the same for all.
pub(crate) fn work(line: &str) -> String {
    format!("{line} -> OK\n")
}

pub(crate) fn to_line(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn backroom(builder: ServerBuilder<String, String>, task_workers: usize) -> anyhow::Result<()> {
    let server = builder
        .task_worker_num(task_workers)
        .max_connections(9_200)
        .framing(Framing::lines())
        .on_receive(|conn, line| {
            conn.task(to_line(line))?;
            Ok(())
        })
        .on_task(|_, line: String| Ok(work(&line)))
        .on_finish(|conn, done| Ok(conn.send(done.into_result()?)?))
        .build()?;
    println!("{}", server.local_addr());
    let _ = server.run()?;
    Ok(())
}

/// With as many threads for blocking work as the others have for tasks.
pub(crate) fn limited_runtime(task_workers: usize) -> io::Result<Runtime> {
    Builder::new_multi_thread().max_blocking_threads(task_workers).enable_io().build()
}

/// Gives each client to `serve`.
pub(crate) async fn tokio<F>(serve: impl Fn(tokio::net::TcpStream) -> F) -> anyhow::Result<()>
where
    F: Future<Output: Send> + Send + 'static,
{
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (client, _) = listener.accept().await?;
        client.set_nodelay(true)?;
        tokio::spawn(serve(client));
    }
}

/// For clients with several requests in flight: a task that reads and one that writes; `spawn_blocking` for the work;
/// everything that is ready goes out in one write.
pub(crate) async fn answer_at_once(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin + Send + 'static,
) {
    let (results, mut to_write) = tokio::sync::mpsc::unbounded_channel::<String>();
    tokio::spawn(async move {
        let (mut batch, mut bytes) = (Vec::new(), Vec::new());
        while to_write.recv_many(&mut batch, 256).await > 0 {
            bytes.clear();
            batch.drain(..).for_each(|result| bytes.extend_from_slice(result.as_bytes()));
            // The flush is for TLS, which may keep some.
            if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
                break;
            }
        }
    });
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
}

/// For clients with one request in flight: one after the other, without a second task to write.
pub(crate) async fn answer_in_turn(mut client: impl AsyncRead + AsyncWrite + Unpin) {
    let mut input = Lines::default();
    while let Ok(1..) = client.read(input.room()).await.map(|n| input.filled(n)) {
        while let Some(line) = input.next_line() {
            let line = to_line(line);
            let Ok(answer) = tokio::task::spawn_blocking(move || work(&line)).await else { return };
            if client.write_all(answer.as_bytes()).await.is_err() || client.flush().await.is_err() {
                return;
            }
        }
    }
}

/// What one writes by hand: a thread that reads and one that writes per connection, and `threadpool` for the work.
pub(crate) fn two_threads(task_workers: usize) -> anyhow::Result<()> {
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
