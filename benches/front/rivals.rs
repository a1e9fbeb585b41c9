//! The servers of these benchmarks, each as its library would have it written.

use backroom::{Framing, Listener, Server};

use crate::shared::lines::{answer_in_turn, backroom, limited_runtime, tokio, two_threads};

/// What a broadcast says.
pub(crate) const MESSAGE: &[u8] = &[b'm'; 128];

/// Serves on a free port, prints it, and goes on until the process is killed.
pub(crate) fn serve(name: &str, threads: usize) -> anyhow::Result<()> {
    match name {
        "backroom" => backroom(Server::builder().listen(Listener::tcp("127.0.0.1:0")), threads),
        "tokio" => limited_runtime(threads)?.block_on(tokio(answer_in_turn)),
        "two threads" => two_threads(threads),
        "backroom, broadcast" => broadcast(threads),
        "tokio, broadcast" => limited_runtime(threads)?.block_on(tokio_broadcast()),
        #[cfg(feature = "tls")]
        _ => crate::tls::serve(name, threads),
        #[cfg(not(feature = "tls"))]
        _ => anyhow::bail!("no server is called {name:?}"),
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
    use ::tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

    let (say, _) = ::tokio::sync::broadcast::channel::<std::sync::Arc<[u8]>>(16);
    tokio(|client| {
        let (say, mut hear) = (say.clone(), say.subscribe());
        async move {
            let (reader, mut writer) = client.into_split();
            let mut lines = BufReader::new(reader).lines();
            loop {
                ::tokio::select! {
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
        }
    })
    .await
}
