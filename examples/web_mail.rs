//! A web server that sends mails, and makes nobody wait for one: `cargo run --release --example web_mail`, then
//! <http://127.0.0.1:8025>.
//!
//! As it comes it writes the mails to a folder; `--smtp smtp://127.0.0.1:25` sends them. Whoever posts a mail is answered
//! at once with the id of its task. The mail is sent by a task worker over an SMTP connection of its own, and tried
//! again if that fails for a while; the page is told of it as it happens. A mail that the SMTP server has got but not
//! confirmed is not tried again: it is shown as one of which it is not known whether it was delivered.
//!
//! It asks nobody for a password, so it should be reached by nobody else: it listens on the loopback address, and
//! refuses mails that the pages of others would have a browser post.

#[path = "web_mail/board.rs"]
mod board;
mod common;
#[path = "web_mail/delivery.rs"]
mod delivery;
#[path = "web_mail/folder.rs"]
mod folder;
#[path = "web_mail/form.rs"]
mod form;
#[path = "web_mail/http.rs"]
mod http;
#[path = "web_mail/outgoing.rs"]
mod outgoing;
#[path = "web_mail/response.rs"]
mod response;
#[path = "web_mail/smtp.rs"]
mod smtp;
#[path = "web_mail/target.rs"]
mod target;

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use backroom::{Framing, Limits, Retry, Server, TaskOptions, Timeout, WhenQueueFull};
use board::{Board, Report, to_json};
use clap::Parser;
use common::say;
use delivery::Delivery;
use form::{Form, deliverable};
use http::{EVENTS, Http, Request, is_head};
use lettre::message::Mailbox;
use outgoing::{Mail, Where, is_passing};
use response::{Response, Status};

#[derive(Parser)]
#[command(
    name = "web_mail",
    args_override_self = true,
    about = "A web page that sends mails, and makes nobody wait for one"
)]
struct Options {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:8025")]
    listen: String,
    /// The SMTP server, such as smtp://127.0.0.1:25 or smtps://user:password@mail.example, or none
    #[arg(long, default_value = "none")]
    smtp: String,
    /// Where mails are written without an SMTP server
    #[arg(long, default_value = "mails")]
    folder: PathBuf,
    /// By which names it may be called beside localhost and IP addresses
    #[arg(long)]
    host: Vec<String>,
    /// Who sends them
    #[arg(long, default_value = "backroom <backroom@localhost>")]
    from: Mailbox,
    /// How many mails are sent at once
    #[arg(long, default_value_t = 2)]
    task_workers: usize,
    /// How many mails may wait, to be tried again too; one more is refused
    #[arg(long, default_value_t = 1000)]
    queue: usize,
    /// How often a mail is tried
    #[arg(long, default_value_t = 5)]
    attempts: u32,
    /// How long before the second attempt; twice as long before each further one, up to a minute
    #[arg(long, default_value_t = 2000)]
    retry_ms: u64,
    /// By how much the times are divided that RFC 5321 has for a mail server: ten minutes to confirm a mail, five for
    /// most else, and an hour for all of it
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    hurry: u32,
    /// How long a request may take to come
    #[arg(long, default_value_t = 30_000)]
    request_ms: u64,
    /// So much longer each mail takes, to see how they wait
    #[arg(long, default_value_t = 0)]
    slow_ms: u64,
}

/// What all connections have in common.
struct Site {
    board: Arc<Board>,
    from: Mailbox,
    hosts: Vec<String>,
    /// How each mail is sent.
    options: TaskOptions<Mail>,
}

/// The session of a connection.
struct Browser {
    site: Arc<Site>,
    /// The head of a request whose body was asked for.
    head: Vec<u8>,
}

type Connection = backroom::Connection<Mail, (), Browser>;

/// Pages take a server from which they hear nothing for somewhat longer for one that is gone.
const HEARTBEAT: Duration = Duration::from_secs(3);
const DRAIN_TIME: Duration = Duration::from_secs(20);
/// The page has everything from here, and may do nothing else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

fn main() -> ExitCode {
    common::run("warn,web_mail=info", serve)
}

fn serve() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    let signals = common::signals()?;
    let board = Arc::new(Board::new(options.queue.saturating_add(options.task_workers)));
    let delivery = Delivery {
        to: match options.smtp.as_str() {
            "none" => Where::Folder(options.folder.clone()),
            url => Where::Smtp { url: url.to_owned(), hurry: options.hurry },
        },
        board: Arc::clone(&board),
        waiting: Arc::default(),
        task_workers: options.task_workers,
        slow: Duration::from_millis(options.slow_ms),
    };
    let server = build(options, &delivery)?;
    say!("listening on http://{}", server.local_addr());
    let signals = common::shut_down_at(signals, server.handle(), DRAIN_TIME);
    let ended = server.run();
    let tried = delivery.try_once_more(&signals);
    let code = tell(board.report());
    ended?;
    tried?;
    Ok(code)
}

fn build(options: Options, delivery: &Delivery) -> anyhow::Result<Server> {
    let retry = Retry::attempts(options.attempts)
        .backoff(Duration::from_millis(options.retry_ms), Duration::from_secs(60))
        .when(is_passing);
    let task_options = TaskOptions::new().retry(retry);
    let from = deliverable(options.from).map_err(anyhow::Error::msg).context("--from")?;
    let site = Arc::new(Site { board: Arc::clone(&delivery.board), from, hosts: options.host, options: task_options });
    let delivery = delivery.clone();
    let (observer, opened) = (Arc::clone(&delivery.board), Arc::clone(&delivery.board));
    let limits = Limits::new().max_frame(http::MAX_FRAME).idle_timeout(Duration::from_secs(60));
    let server = Server::builder()
        .session(move |_peer| Browser { site: Arc::clone(&site), head: Vec::new() })
        .task_worker(move |_index| delivery.postman())
        .observer(observer)
        .on_start(move |server| {
            opened.open(server);
            Ok(())
        })
        .task_worker_num(options.task_workers)
        .queue_capacity(options.queue)
        .when_queue_full(WhenQueueFull::Refuse)
        .framing(Framing::decoder(Http::default))
        .limits(limits.frame_timeout(Duration::from_millis(options.request_ms)))
        .on_receive(receive)
        .on_timeout(say_what_took_too_long)
        .on_task(|cx, mail: Mail| {
            let (postman, task) = cx.parts();
            postman.attempt(&mail, task.attempt(), task.is_last_attempt())
        })
        .bind(options.listen.as_str())?;
    Ok(server)
}

/// What has become of the mails.
fn tell(Report { accepted, sent, unknown, left }: Report) -> ExitCode {
    left.iter().for_each(|mail| say!("{mail}"));
    let not = accepted - sent - unknown;
    let unknown = if unknown > 0 { format!(", {unknown} not known") } else { String::new() };
    say!("shutdown: {accepted} mails accepted, {sent} sent, {not} not{unknown}");
    if left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Of a request that has begun the client is told why it is not answered.
fn say_what_took_too_long(conn: &mut Connection, timeout: Timeout) -> anyhow::Result<()> {
    match timeout {
        Timeout::Frame => answer(conn, Response::error(Status::RequestTimeout).closing(), false),
        _ => Ok(()),
    }
}

fn receive(conn: &mut Connection, frame: &[u8]) -> anyhow::Result<()> {
    let mut whole = std::mem::take(&mut conn.session_mut().head);
    let frame = if whole.is_empty() {
        frame
    } else {
        whole.extend_from_slice(frame);
        &whole
    };
    let request = match Request::of(frame) {
        Ok(request) if request.asks => {
            conn.session_mut().head = frame.to_vec();
            return Ok(conn.send(response::CONTINUE)?);
        }
        Ok(request) => request,
        Err(status) => return answer(conn, Response::error(status).closing(), is_head(frame)),
    };
    let is_head = request.method == "HEAD";
    let response = match (request.method, request.path) {
        _ if !is_called_by_name(&request, &conn.session().site.hosts) => Response::error(Status::Misdirected),
        ("GET", EVENTS) if watch(conn)? => return Ok(()),
        ("GET", EVENTS) => Response::error(Status::Unavailable).header("Retry-After", "5"),
        _ => route(conn, &request),
    };
    // Nothing is read after that for the events.
    let response = if request.path == EVENTS { response.closing() } else { response };
    answer(conn, response.for_connection_of(&request), is_head)
}

fn answer(conn: &mut Connection, response: Response, is_head: bool) -> anyhow::Result<()> {
    conn.send(response.to_bytes(is_head))?;
    if response.closes() {
        conn.close();
    }
    Ok(())
}

fn route(conn: &mut Connection, request: &Request<'_>) -> Response {
    let reads = matches!(request.method, "GET" | "HEAD");
    match (request.path, request.method) {
        ("/mails", "POST") => post(conn, request),
        ("/mails", _) if reads => json(Status::Ok, conn.session().site.board.to_json()),
        ("/mails", _) => not_allowed("GET, HEAD, POST"),
        (EVENTS, _) => not_allowed("GET"),
        // What the server can do for any path: of all that are allowed somewhere.
        ("*", _) => Response::new(Status::Ok, "text/plain", b"".as_slice()).header("Allow", "GET, HEAD, POST"),
        (path, _) => match part_of_the_page(path) {
            Some(part) if reads => part,
            Some(_) => not_allowed("GET, HEAD"),
            None => Response::error(Status::NotFound),
        },
    }
}

fn part_of_the_page(path: &str) -> Option<Response> {
    let (kind, text) = match path {
        "/" => ("text/html; charset=utf-8", include_str!("web_mail/page.html")),
        "/style.css" => ("text/css; charset=utf-8", include_str!("web_mail/style.css")),
        "/page.js" => ("text/javascript; charset=utf-8", include_str!("web_mail/page.js")),
        "/icon.svg" => ("image/svg+xml", include_str!("web_mail/icon.svg")),
        _ => return None,
    };
    let part = Response::new(Status::Ok, kind, text.as_bytes()).header("Cache-Control", "no-cache");
    Some(part.header("Content-Security-Policy", POLICY).header("Referrer-Policy", "no-referrer"))
}

/// Hands the mail over, and answers with the id of its task.
fn post(conn: &mut Connection, request: &Request<'_>) -> Response {
    if !is_of_this_site(request) {
        return Response::error(Status::Forbidden);
    }
    let kind = request.header("content-type").and_then(|kind| kind.split(';').next()).map(str::trim);
    if !kind.is_some_and(|kind| kind.eq_ignore_ascii_case("application/x-www-form-urlencoded")) {
        return Response::error(Status::UnsupportedMediaType);
    }
    let site = Arc::clone(&conn.session().site);
    let form = Form::parse(&request.body);
    let (form, message) = match form.and_then(|form| Ok((form.message(&site.from)?, form))) {
        Ok((message, form)) => (form, Arc::new(message)),
        Err(problem) => return json(Status::Unprocessable, to_json(&problem)),
    };
    let submit = |number| conn.with(site.options.clone()).task_oneway(Mail { number, message }).ok();
    match site.board.add(form.to, form.subject, submit) {
        Some(receipt) => json(Status::Accepted, to_json(&receipt)),
        // There are too many, or the server is about to end.
        None => Response::error(Status::Unavailable).header("Retry-After", "5"),
    }
}

/// Whether it is called by a name of its own. Another site could point a name of its own here (DNS rebinding), and the
/// browser would take the site's pages for this one's.
fn is_called_by_name(request: &Request<'_>, names: &[String]) -> bool {
    // A request of HTTP/1.0 may have none, and comes from no browser.
    let Some(host) = request.host else { return true };
    let is_one_of = |names: &[String]| names.iter().any(|own| own.eq_ignore_ascii_case(host));
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok() || is_one_of(names)
}

/// Whether no page of others had the browser send this. Who is no browser says nothing of it.
fn is_of_this_site(request: &Request<'_>) -> bool {
    match (request.header("sec-fetch-site"), request.header("origin")) {
        (Some(site), _) => matches!(site, "same-origin" | "none"),
        (None, Some(origin)) => {
            let own =
                |(_, authority): (_, &str)| request.authority.is_some_and(|own| own.eq_ignore_ascii_case(authority));
            origin.split_once("://").is_some_and(own)
        }
        (None, None) => true,
    }
}

fn not_allowed(allowed: &'static str) -> Response {
    Response::error(Status::MethodNotAllowed).header("Allow", allowed)
}

fn json(status: Status, text: String) -> Response {
    Response::new(status, "application/json", text.into_bytes()).header("Cache-Control", "no-store")
}

/// Server-sent events: what is known at once, and then what changes; `false` if too many watch already.
fn watch(conn: &mut Connection) -> anyhow::Result<bool> {
    let head = Response::stream("text/event-stream").header("Cache-Control", "no-store");
    // A proxy of the kind of nginx is to pass each event on as it comes.
    let head = head.header("X-Accel-Buffering", "no").to_bytes(false);
    let site = Arc::clone(&conn.session().site);
    if !site.board.watch(conn, &head)? {
        return Ok(false);
    }
    // It says nothing more, and may stay for as long as it likes.
    conn.protect(true);
    conn.every(HEARTBEAT, |conn| Ok(conn.send("event: heartbeat\ndata:\n\n")?));
    Ok(true)
}
