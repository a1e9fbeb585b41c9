//! The web page that sends mails: its HTTP, its mails, and how it gets on with programs that know nothing of it.

#[path = "../common/mod.rs"]
mod common;

mod browser;
mod foreign;
mod http;
mod mails;
mod site;
mod smtp;
