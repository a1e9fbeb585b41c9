//! Which servers there are.

use backroom::{Listener, Server};

use crate::shared::lines::{answer_at_once, backroom, limited_runtime, tokio, two_threads};

pub(crate) const NAMES: [&str; 4] = ["backroom", "tokio", "tokio, limited", "two threads"];

/// tokio runs once with its runtime's defaults, under which up to 512 threads do the work, and once with as many as the
/// others have, which is the faster here.
pub(crate) fn serve(name: &str, task_workers: usize) -> anyhow::Result<()> {
    let pipelined = |client: ::tokio::net::TcpStream| {
        let (reader, writer) = client.into_split();
        answer_at_once(reader, writer)
    };
    match name {
        "backroom" => backroom(Server::builder().listen(Listener::tcp("127.0.0.1:0")), task_workers),
        "tokio" => ::tokio::runtime::Builder::new_multi_thread().enable_io().build()?.block_on(tokio(pipelined)),
        "tokio, limited" => limited_runtime(task_workers)?.block_on(tokio(pipelined)),
        "two threads" => two_threads(task_workers),
        _ => anyhow::bail!("no server is called {name:?}"),
    }
}
