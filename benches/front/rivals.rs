//! The servers of these benchmarks, each as its library would have it written.

use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;

use backroom::{Framing, Listener, Server};

/// What a broadcast says.
pub(crate) const MESSAGE: &[u8] = &[b'm'; 128];

/// Serves on a free port, prints it, and goes on until the process is killed.
pub(crate) fn serve(name: &str, threads: usize) -> anyhow::Result<()> {
    match name {
        "backroom" => lines(Server::builder().listen(Listener::tcp("127.0.0.1:0")), threads),
        "tokio" => tokio(threads)?.block_on(tokio_lines()),
        "two threads" => two_threads(threads),
        "backroom, broadcast" => broadcast(threads),
        "tokio, broadcast" => tokio(threads)?.block_on(tokio_broadcast()),
        #[cfg(feature = "tls")]
        _ => crate::tls::serve(name, threads),
        #[cfg(not(feature = "tls"))]
        _ => anyhow::bail!("no server is called {name:?}"),
    }
}

pub(crate) fn tokio(threads: usize) -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Ok(builder.max_blocking_threads(threads).enable_io().build()?)
}

/// The task, the same for all.
pub(crate) fn work(line: &str) -> String {
    format!("{line} -> OK\n")
}

pub(crate) fn to_line(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Lines in, a task for each, lines out.
pub(crate) fn lines(builder: backroom::ServerBuilder<String, String>, threads: usize) -> anyhow::Result<()> {
    let server = builder
        .task_worker_num(threads)
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

async fn tokio_lines() -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (client, _) = listener.accept().await?;
        client.set_nodelay(true)?;
        tokio::spawn(answer_lines(client));
    }
}

/// One request after the other, which suits connections with one, and several in flight less; those are measured by the
/// `server` benchmark.
pub(crate) async fn answer_lines(
    client: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
) -> anyhow::Result<()> {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

    let mut client = BufReader::new(client);
    let mut line = String::new();
    while client.read_line(&mut line).await? > 0 {
        let asked = line.trim_end().to_owned();
        let answer = tokio::task::spawn_blocking(move || work(&asked)).await?;
        client.write_all(answer.as_bytes()).await?;
        line.clear();
    }
    Ok(())
}

/// A thread that reads and one that writes per connection, and `threadpool` for the work.
fn two_threads(threads: usize) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    let pool = threadpool::ThreadPool::new(threads);
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

fn read_lines(client: TcpStream, results: &mpsc::Sender<String>, pool: &threadpool::ThreadPool) {
    use std::io::BufRead;

    for line in std::io::BufReader::new(client).lines() {
        let Ok(line) = line else { break };
        let results = results.clone();
        pool.execute(move || {
            let _ = results.send(work(&line));
        });
    }
}

fn write_results(mut client: TcpStream, to_write: &mpsc::Receiver<String>) {
    use std::io::Write;

    while let Ok(result) = to_write.recv() {
        if client.write_all(result.as_bytes()).is_err() {
            break;
        }
    }
}

/// Any line has the message sent to all, the author among them.
fn broadcast(threads: usize) -> anyhow::Result<()> {
    let server = Server::builder::<(), ()>()
        .task_worker_num(threads)
        .framing(Framing::lines())
        .on_receive(|conn, _line| {
            conn.server().broadcast(MESSAGE);
            Ok(())
        })
        .on_task(|_, ()| Ok(()))
        .bind("127.0.0.1:0")?;
    println!("{}", server.local_addr());
    let _ = server.run()?;
    Ok(())
}

/// The same with a broadcast channel: a task per connection that reads and hears.
async fn tokio_broadcast() -> anyhow::Result<()> {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let (say, _) = tokio::sync::broadcast::channel::<std::sync::Arc<[u8]>>(16);
    loop {
        let (client, _) = listener.accept().await?;
        client.set_nodelay(true)?;
        let (say, mut hear) = (say.clone(), say.subscribe());
        tokio::spawn(async move {
            let (reader, mut writer) = client.into_split();
            let mut lines = BufReader::new(reader).lines();
            loop {
                tokio::select! {
                    line = lines.next_line() => match line {
                        Ok(Some(_)) => drop(say.send(MESSAGE.into())),
                        _ => break,
                    },
                    heard = hear.recv() => match heard {
                        Ok(message) if writer.write_all(&message).await.is_ok() => {}
                        _ => break,
                    },
                }
            }
        });
    }
}
