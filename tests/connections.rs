//! What is known of connections from outside, and what the server counts of those that it has refused and closed.

mod common;

use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use backroom::{
    Address, ClosedStats, ConnectionId, ConnectionInfo, Decoder, Frame, Framing, Limits, Listener, Malformed,
    ProxyProtocol, Server, ServerHandle,
};
use common::house::{Guest, House, SHORT, Told, job, slow_client, small_buffers};
use common::{Client, Gate, eventually, run};

const ANYWHERE: &str = "127.0.0.1:0";

/// The address of a listener, by its place among all.
fn listener(handle: &ServerHandle, index: usize) -> SocketAddr {
    handle.local_addrs()[index].inet().unwrap()
}

fn ids(connections: impl IntoIterator<Item = ConnectionInfo>) -> Vec<ConnectionId> {
    connections.into_iter().map(|connection| connection.id).collect()
}

#[test]
fn connections_are_listed_by_pages_in_the_order_of_their_ids() {
    let house = House::open(|builder| builder);
    assert_eq!(house.handle().connections().list().len(), 0);
    let mut guests: Vec<Guest> = (0..25).map(|_| house.guest()).collect();
    let all: Vec<ConnectionId> = guests.iter().map(|guest| guest.id).collect();
    assert!(all.is_sorted());
    assert_eq!((ids(house.handle().connections()), house.handle().connections().count()), (all.clone(), 25));

    let mut page = house.handle().connections().limit(10).list();
    let mut pages = vec![];
    while let Some(last) = page.last() {
        let next = house.handle().connections().after(last.id).limit(10).list();
        pages.push(ids(page));
        assert!(pages.len() <= 3, "it has no end");
        page = next;
    }
    assert_eq!(pages, [&all[..10], &all[10..20], &all[20..]]);
    assert_eq!(house.handle().connections().limit(0).count(), 0);

    // One that has closed is still a place in the list.
    let closed = guests.remove(12).id;
    eventually("it is gone", || house.handle().connection(closed).is_none());
    assert_eq!(ids(house.handle().connections().after(closed).limit(2)), all[13..15]);
    assert_eq!(ids(house.handle().connections().after(all[10])), [&all[11..12], &all[13..]].concat());
    drop(guests);
    house.server.stop();
}

#[test]
fn connections_are_found_by_listener_by_user_and_by_silence_and_by_all_of_these() {
    let house = House::open(|builder| builder.listen(Listener::tcp(ANYWHERE).name("admin")));
    let handle = house.handle();
    let admin = || house.welcome(Client::connect(listener(handle, 1)));
    let mut guests = [house.guest(), admin(), house.guest(), admin()];
    let [first, second, third, fourth] = [0, 1, 2, 3].map(|guest: usize| guests[guest].id);
    for (guest, user) in guests.iter().zip(["ann", "ann", "bob", "bob"]) {
        guest.on_worker(move |conn| conn.bind(user));
    }
    let connections = || handle.connections();
    assert_eq!(ids(connections().listener("admin")), [second, fourth]);
    // Its name, where it was given none, is its address.
    assert_eq!(ids(connections().listener(handle.local_addr().to_string())), [first, third]);
    assert_eq!(ids(connections().listener("nowhere")), []);
    assert_eq!(ids(connections().user("bob")), [third, fourth]);
    assert_eq!(ids(connections().user("")), []);
    // The limit is on those that are found.
    assert_eq!(ids(connections().user("bob").limit(1)), [third]);
    assert_eq!(ids(connections().user("bob").after(third)), [fourth]);
    assert_eq!(ids(connections().user("bob").listener("admin")), [fourth]);

    eventually("all are silent", || connections().silent_for(SHORT).count() == 4);
    // Again and again, since the machine may take longer than that for the question.
    eventually("those that speak are not", || {
        for guest in &mut guests[..2] {
            guest.client.send("hello\n");
            assert_eq!(house.told(), Told::Frame("hello".into()));
        }
        let silent = ids(connections().silent_for(SHORT));
        assert!(silent.ends_with(&[third, fourth]));
        silent.len() == 2
    });
    assert_eq!(ids(connections().silent_for(SHORT).user("bob").listener("admin")), [fourth]);
    assert_eq!(connections().silent_for(Duration::MAX).count(), 0);
    drop(guests);
    house.server.stop();
}

#[test]
fn a_connection_is_known_by_where_it_came_from_and_when() {
    let house = House::open(|builder| builder.listen(Listener::tcp(ANYWHERE).name("admin")));
    let before = Instant::now();
    let guest = house.welcome(Client::connect(listener(house.handle(), 1)));
    let after = Instant::now();
    let socket = guest.client.socket.get_ref();
    let info = guest.info();
    assert_eq!(info.id, guest.id);
    assert_eq!(info.peer_addr, Address::from(socket.local_addr().unwrap()));
    assert_eq!(info.local_addr, Address::from(socket.peer_addr().unwrap()));
    assert_eq!((&*info.listener, info.user.as_deref(), info.protected), ("admin", None, false));
    assert!(before <= info.connected_at && info.connected_at <= after);
    assert_eq!((info.received_at, info.sent_at), (info.connected_at, info.connected_at));

    let (seen, there) = guest.on_worker(|conn| {
        conn.protect(true);
        conn.bind("ann");
        (conn.info(), (conn.peer_addr().clone(), conn.local_addr().clone(), conn.listener().to_owned()))
    });
    assert_eq!((seen.user.as_deref(), seen.protected), (Some("ann"), true));
    assert_eq!(there, (seen.peer_addr, seen.local_addr, seen.listener.to_string()));
    guest.on_worker(|conn| conn.protect(false));
    assert!(!guest.info().protected);

    drop(guest);
    house.closed();
    eventually("it is gone", || house.handle().connection(info.id).is_none());
    house.server.stop();
}

#[test]
fn what_goes_each_way_is_counted_and_timed() {
    let house = House::open(|builder| builder);
    let mut guest = house.guest();
    let mut last = guest.info();
    for round in 1..=3 {
        guest.client.send("one\ntwo\nthr");
        guest.client.send("ee\n");
        (0..3).for_each(|_| assert!(matches!(house.told(), Told::Frame(_))));
        guest.on_worker(|conn| {
            conn.send("a").unwrap();
            conn.send("bc").unwrap();
        });
        house.handle().send(guest.id, "d").unwrap();
        house.handle().send(guest.id, "ef").unwrap();
        assert_eq!(house.handle().broadcast("g").sent, 1);
        let file = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
        house.handle().send_file(guest.id, file, 0, Some(3)).unwrap();
        guest.client.bytes(10);
        let counts = |info: &ConnectionInfo| {
            (info.bytes_received, info.frames_received, info.bytes_sent, info.messages_sent, info.outbox_bytes)
        };
        eventually("all is counted", || counts(&guest.info()) == (14 * round, 3 * round, 10 * round, 6 * round, 0));
        let info = guest.info();
        assert!(info.received_at > last.received_at && info.sent_at > last.sent_at);
        assert!(info.received_at <= info.sent_at && info.sent_at <= Instant::now());
        assert_eq!(info.connected_at, last.connected_at);
        last = info;
    }
    drop(guest);
    house.server.stop();
}

#[test]
fn tasks_in_flight_and_bytes_that_wait_are_seen() {
    const SENT: usize = 500_000;
    let house = House::open(|builder| builder.task_worker_num(1).socket_options(small_buffers()));
    let mut guest = house.welcome(slow_client(house.server.addr()));
    let gate = Gate::default();
    for _ in 0..3 {
        let held = gate.clone();
        guest.task_then(job(move |_, _| held.pass()), |_| Ok(()));
    }
    eventually("three are in flight", || guest.info().tasks_in_flight == 3);
    gate.open();
    eventually("none is", || guest.info().tasks_in_flight == 0);

    // Some of it by mail that waits for the outbox, some that the kernel has taken.
    guest.on_worker(|conn| conn.send(vec![b'x'; SENT]).unwrap());
    (0..2).for_each(|_| house.handle().send(guest.id, vec![b'x'; SENT]).unwrap());
    let taken_and_waiting = |guest: &Guest| (guest.info().bytes_sent as usize, guest.info().outbox_bytes);
    eventually("it waits", || {
        let (taken, waiting) = taken_and_waiting(&guest);
        waiting > 2 * SENT && taken + waiting == 3 * SENT
    });
    guest.client.bytes(3 * SENT);
    eventually("it is taken", || taken_and_waiting(&guest) == (3 * SENT, 0));
    drop(guest);
    house.server.stop();
}

#[test]
fn a_user_has_the_connections_that_are_bound_to_it_for_as_long_as_they_are() {
    let house = House::open(|builder| builder);
    let of = |user| house.handle().connections_of(user);
    let (first, second) = (house.guest(), house.guest());
    let bind = |guest: &Guest, user: &'static str| guest.on_worker(move |conn| conn.bind(user));
    // Not in the order of their ids.
    bind(&second, "ann");
    bind(&first, "ann");
    assert_eq!(of("ann"), [first.id, second.id]);
    bind(&first, "ann");
    assert_eq!(of("ann"), [first.id, second.id], "twice is once");
    bind(&first, "bob");
    assert_eq!((of("ann"), of("bob")), (vec![second.id], vec![first.id]));
    assert_eq!(first.on_worker(|conn| conn.user()).as_deref(), Some("bob"));
    assert_eq!(first.info().user.as_deref(), Some("bob"));

    first.on_worker(|conn| conn.unbind());
    first.on_worker(|conn| conn.unbind());
    assert_eq!((of("bob"), first.on_worker(|conn| conn.user())), (vec![], None));
    assert_eq!(of("ann"), [second.id]);

    let id = second.id;
    drop(second);
    eventually("it is gone", || house.handle().connection(id).is_none());
    assert_eq!(of("ann"), []);
    // Another that comes later is not confused with it.
    bind(&first, "ann");
    assert_eq!(of("ann"), [first.id]);
    drop(first);
    house.server.stop();
}

#[test]
fn an_address_has_so_many_connections_of_a_listener_at_once_if_it_is_set_and_one_more_is_refused() {
    let house = House::open(|builder| {
        builder
            .limits(Limits::new().max_connections_per_address(2))
            .listen(Listener::tcp(ANYWHERE).limits(Limits::new()))
    });
    let stats = || house.handle().stats();
    let (first, second) = (house.guest(), house.guest());
    for refused in 1..=3 {
        assert_eq!(house.server.client().rest(), "");
        assert_eq!((stats().refused.too_many_of_address, stats().refused.total()), (refused, refused));
    }
    // Another listener has a limit of its own; by default none for loopback.
    let elsewhere: Vec<Guest> = (0..5).map(|_| house.welcome(Client::connect(listener(house.handle(), 1)))).collect();
    drop(first);
    eventually("there is a place", || stats().connections == 6);
    let third = house.guest();
    assert_eq!(house.server.client().rest(), "");
    assert_eq!((stats().accepted_connections, stats().refused.total()), (12, 4));
    drop((second, third, elsewhere));
    house.server.stop();
}

#[test]
fn an_address_connects_only_so_often_if_that_is_set() {
    let house = House::open(|builder| {
        builder
            .limits(Limits::new().accept_rate_per_address(3, Duration::from_secs(3600)))
            .listen(Listener::tcp(ANYWHERE).limits(Limits::new().accept_rate_per_address(1, SHORT / 2)))
    });
    let stats = || house.handle().stats();
    // That they close makes no difference.
    (0..3).for_each(|_| drop(house.guest()));
    for refused in 1..=3 {
        assert_eq!(house.server.client().rest(), "");
        assert_eq!((stats().refused.too_fast_of_address, stats().refused.total()), (refused, refused));
    }
    // Here it may, once in a while.
    let begun = Instant::now();
    eventually("three have come", || {
        drop(Client::connect(listener(house.handle(), 1)));
        // Those that are refused are accepted before that is known.
        stats().closed.total() >= 3 + 3
    });
    assert!(begun.elapsed() >= SHORT, "two pauses of a half");
    house.server.stop();
}

/// Takes nothing for a frame.
struct Never;

impl Decoder for Never {
    fn decode(&mut self, _: &[u8]) -> Result<Option<Frame>, Malformed> {
        Err(Malformed::new("never"))
    }
}

/// Sends that; the connection is closed for it.
fn says(bytes: impl AsRef<[u8]>, mut client: Client) -> Option<Client> {
    client.send(bytes);
    Some(client)
}

#[test]
fn each_connection_is_counted_once_by_what_closed_it() {
    let haunted = Arc::new(AtomicBool::new(false));
    let in_session = Arc::clone(&haunted);
    let place = |limits: Limits| Listener::tcp(ANYWHERE).limits(limits.max_frame(100));
    let proxied = |limits: Limits| place(limits).proxy_protocol(ProxyProtocol::from(["127.0.0.1"]));
    let server = Server::builder::<(), ()>()
        .session(move |_| assert!(!in_session.load(Ordering::Relaxed), "the house is haunted"))
        .framing(Framing::lines())
        .socket_options(small_buffers())
        .listen(place(Limits::new()))
        .listen(place(Limits::new().frame_timeout(SHORT)))
        .listen(place(Limits::new().write_timeout(SHORT)))
        .listen(place(Limits::new().idle_timeout(SHORT)))
        .listen(place(Limits::new().silence_timeout(SHORT)))
        .listen(place(Limits::new().max_lifetime(SHORT)))
        .listen(place(Limits::new()).framing(Framing::decoder(|| Never)))
        .listen(proxied(Limits::new().handshake_timeout(SHORT)))
        .listen(proxied(Limits::new().max_connections_per_address(1)))
        .listen(proxied(Limits::new().accept_rate_per_address(1, Duration::from_secs(3600))))
        .on_receive(|conn, line| {
            match line {
                b"close" => conn.close(),
                b"abort" => conn.abort(),
                b"panic" => panic!("as it was told"),
                b"talk" => while conn.send([b'x'; 1000]).is_ok() {},
                _ => anyhow::bail!("as it was told"),
            }
            Ok(())
        })
        .on_task(|_, ()| Ok(()))
        .build()
        .unwrap();
    let server = run(server);
    let stats = || server.handle.stats();

    const PROXIED: &str = "PROXY TCP4 192.0.2.1 192.0.2.2 1111 2222\r\n";
    const HELLO: [u8; 7] = [0x16, 3, 1, 0, 99, 1, 0];
    type Act = fn(Client) -> Option<Client>;
    type Count = fn(&ClosedStats) -> u64;
    let cases: [(usize, Act, Count); 18] = [
        (0, |_| None, |closed| closed.client),
        (0, |client| says("close\n", client), |closed| closed.server),
        (0, |client| says("abort\n", client), |closed| closed.aborted),
        (0, |client| says("fail\n", client), |closed| closed.callback_failed),
        (0, |client| says("panic\n", client), |closed| closed.panicked),
        (0, |client| says([b'x'; 200], client), |closed| closed.frame_too_long),
        (0, |client| says(HELLO, client), |closed| closed.unexpected_tls),
        (
            0,
            |client| {
                client.reset();
                None
            },
            |closed| closed.io,
        ),
        (1, |client| says("half", client), |closed| closed.frame_timeout),
        (2, |client| says("talk\n", client), |closed| closed.write_timeout),
        (3, Some, |closed| closed.idle_timeout),
        (4, Some, |closed| closed.silence_timeout),
        (5, Some, |closed| closed.lifetime),
        (6, |client| says("x", client), |closed| closed.malformed),
        (7, Some, |closed| closed.handshake_timeout),
        (7, |client| says("no header\n", client), |closed| closed.bad_proxy_header),
        // The first of each is still there.
        (8, |client| says(PROXIED, client), |closed| closed.too_many_of_address),
        (9, |client| says(PROXIED, client), |closed| closed.too_fast_of_address),
    ];
    let mut open: Vec<Client> = [8, 9].map(|index| Client::connect(listener(&server.handle, index))).into();
    open.iter_mut().for_each(|client| client.send(PROXIED));
    eventually("they are known", || server.handle.connections().count() == 2);

    for (number, (index, act, count)) in (1..).zip(cases) {
        let client = act(slow_client(listener(&server.handle, index)));
        eventually(&format!("case {number} is counted"), || count(&stats().closed) == 1);
        assert_eq!(stats().closed.total(), number, "{:?}", stats().closed);
        drop(client);
    }
    haunted.store(true, Ordering::Relaxed);
    drop(Client::connect(listener(&server.handle, 0)));
    eventually("it is counted though it never had a session", || stats().closed.panicked == 2);

    eventually("only the first two are open", || stats().connections == 2);
    assert_eq!((stats().accepted_connections, stats().refused.total(), stats().closed.total()), (21, 0, 19));
    let handle = server.handle.clone();
    server.stop();
    assert_eq!((handle.stats().closed.shutdown, handle.stats().closed.total()), (2, 21));
}

#[test]
fn accepted_is_refused_and_closed_and_open_whatever_happens() {
    const THREADS: u64 = 8;
    const CLIENTS: u64 = 60;
    let house = House::open(|builder| builder.limits(Limits::new().max_connections_per_address(5)));
    let balanced = |clients: u64, open: usize| {
        let stats = house.handle().stats();
        let accounted = stats.refused.total() + stats.closed.total() + open as u64;
        (stats.accepted_connections, stats.connections, accounted) == (clients, open, clients)
    };
    let full: Vec<Guest> = (0..5).map(|_| house.guest()).collect();
    assert_eq!(house.server.client().rest(), "");
    eventually("five are open", || balanced(6, 5));
    drop(full);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (handle, addr) = (house.handle(), house.server.addr());
            scope.spawn(move || {
                for client in 0..CLIENTS {
                    let mut socket = TcpStream::connect(addr).unwrap();
                    // It may have been refused by now.
                    let _ = socket.write_all(b"hello\n");
                    let ids = ids(handle.connections());
                    match (thread + client) % 3 {
                        0 => Client { socket: BufReader::new(socket) }.reset(),
                        1 => drop(ids.first().map(|id| handle.close(*id))),
                        _ => drop(ids.last().map(|id| handle.abort(*id))),
                    }
                }
            });
        }
    });
    eventually("all have come and gone", || balanced(6 + THREADS * CLIENTS, 0));
    let last = house.server.client();
    eventually("one is open", || balanced(7 + THREADS * CLIENTS, 1));
    drop(last);
    house.server.stop();
}

#[test]
fn what_went_over_connections_is_still_counted_when_they_are_closed() {
    let before = SystemTime::now();
    let house = House::open(|builder| builder);
    let after = SystemTime::now();
    let traffic = |handle: &ServerHandle| {
        let traffic = handle.stats().traffic;
        (traffic.bytes_received, traffic.frames_received, traffic.bytes_sent, traffic.messages_sent)
    };
    assert_eq!(traffic(house.handle()), (0, 0, 0, 0));
    let mut guests: Vec<Guest> = (0..10).map(|_| house.guest()).collect();
    for guest in &mut guests {
        guest.client.send("hello\nworld\n");
        guest.on_worker(|conn| conn.send("12345").unwrap());
    }
    house.handle().broadcast("678");
    guests.iter_mut().for_each(|guest| drop(guest.client.bytes(8)));
    let expected = (120, 20, 80, 20);
    eventually("all is counted", || traffic(house.handle()) == expected);
    // One after the other, in different ways; nothing is missing or twice at any time.
    for (number, guest) in guests.into_iter().enumerate() {
        match number % 3 {
            0 => assert!(house.handle().close(guest.id)),
            1 => assert!(house.handle().abort(guest.id)),
            _ => {}
        }
        let id = guest.id;
        drop(guest);
        while house.handle().connection(id).is_some() {
            assert_eq!(traffic(house.handle()), expected);
        }
        assert_eq!(traffic(house.handle()), expected);
    }
    let handle = house.handle().clone();
    let started_at = handle.stats().started_at;
    assert!(before <= started_at && started_at <= after);
    house.server.stop();
    assert_eq!((traffic(&handle), handle.stats().started_at), (expected, started_at));
}
