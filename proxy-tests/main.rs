//! Tests from outside: real dockerd, etcd, BIRD, namespaces and packets.
//!
//! They need root and the tools that a [`lab`] lists; what is missing fails them, with its name. One lab is some hundred processes'
//! worth of work, and waits for much of its time: two cores take three at once, `--test-threads=3`.
//!
//! A test that fails prints the last of its logs, its datastore and how its hosts are entered; `CALICO_LAB_KEEP=1` keeps the lab for that.
//! `CALICO_NODE_BIN` and `CALICOCTL_BIN` name other binaries than those just built.

mod lab;

mod addresses;
mod attacks;
mod checkpoints;
mod clean;
mod cli;
mod compose;
mod connectivity;
mod crashes;
mod datastore;
mod differ;
mod doors;
mod drift;
mod embedded;
mod engine;
mod everywhere;
mod first_instruction;
mod flows;
mod guard;
mod install;
mod lab_itself;
mod leaks;
mod life;
mod lifecycle;
mod limits;
mod outside;
mod policy;
mod races;
mod readme;
mod refusals;
mod remapped;
mod restarts;
mod rules6;
mod runtime;
mod sdk;
mod settings;
mod shown;
mod six;
mod steps;
mod storm;
mod streams;
mod succession;
mod tools;
mod transparency;
mod unwell;
mod upgrade;
mod walkthrough;
