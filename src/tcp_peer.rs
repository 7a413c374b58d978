//! The user at the other end of a TCP connection of this machine, from the connection tables of the kernel.
//!
//! Any user can connect to a port of the loopback, so a port alone says nothing about its visitor.

use std::fs::File;
use std::io::{self, BufReader};
use std::net::{IpAddr, SocketAddr};

const IPV4_TABLE: &str = "/proc/self/net/tcp";
const IPV6_TABLE: &str = "/proc/self/net/tcp6";

/// The owner of the socket at `peer` that is connected to `local`. `None` if the kernel lists none: the peer is on
/// another machine or in another network namespace, or has closed its socket.
pub async fn uid(peer: SocketAddr, local: SocketAddr) -> io::Result<Option<u32>> {
    tokio::task::spawn_blocking(move || find(peer, local)).await.map_err(io::Error::other)?
}

fn find(peer: SocketAddr, local: SocketAddr) -> io::Result<Option<u32>> {
    // A program may use an IPv6 socket for an IPv4 address.
    for (table, as_ipv6) in [(IPV6_TABLE, true), (IPV4_TABLE, false)] {
        let table = match File::open(table) {
            Ok(table) => table,
            // A kernel without IPv6.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let ends = (in_table(peer, as_ipv6), in_table(local, as_ipv6));
        if let Some(uid) = uid_in(&mut BufReader::new(table), &ends)? {
            return Ok(Some(uid));
        }
    }
    Ok(None)
}

/// `0100007F:1F90`: the words of the address in the byte order of the machine, and the port.
fn in_table(address: SocketAddr, as_ipv6: bool) -> String {
    let word = |bytes: &[u8]| {
        let bytes = bytes.first_chunk().copied().unwrap_or_default();
        format!("{:08X}", u32::from_ne_bytes(bytes))
    };
    let ip = match address.ip().to_canonical() {
        IpAddr::V4(ip) if !as_ipv6 => word(&ip.octets()),
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets().chunks(4).map(word).collect(),
        IpAddr::V6(ip) => ip.octets().chunks(4).map(word).collect(),
    };
    format!("{ip}:{:04X}", address.port())
}

fn uid_in(table: &mut impl io::BufRead, (peer, local): &(String, String)) -> io::Result<Option<u32>> {
    let mut line = String::new();
    while table.read_line(&mut line)? > 0 {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        // Fields: number, local end, remote end, state, queues, timer, retransmissions, uid, timeout, inode. A
        // closed socket has no inode, and its uid reads as that of root.
        if let [_, from, to, _, _, _, _, uid, _, inode, ..] = fields[..]
            && (from, to) == (peer.as_str(), local.as_str())
            && inode != "0"
        {
            return Ok(uid.parse().ok());
        }
        line.clear();
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::{TcpListener, TcpSocket, TcpStream};

    #[tokio::test]
    async fn peer_is_found_in_both_families() {
        let ours = Some(rustix::process::geteuid().as_raw());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let (server, from) = listener.accept().await.unwrap();
        let local = server.local_addr().unwrap();
        assert_eq!(uid(from, local).await.unwrap(), ours);
        // The other direction of the same connection belongs to the server.
        assert_eq!(uid(local, from).await.unwrap(), ours);
        drop(client);
        assert_eq!(uid(from, local).await.unwrap(), None, "a closed socket has an owner");
        let mapped = format!("[::ffff:127.0.0.1]:{port}").parse().unwrap();
        let Ok(client) = TcpSocket::new_v6().unwrap().connect(mapped).await else { return };
        let (server, from) = listener.accept().await.unwrap();
        assert_eq!(uid(from, server.local_addr().unwrap()).await.unwrap(), ours);
        drop(client);
    }

    #[test]
    fn only_the_exact_connection_counts() {
        let peer = "127.0.0.1:8080".parse().unwrap();
        let local = "127.0.0.1:9431".parse().unwrap();
        let ends = (in_table(peer, false), in_table(local, false));
        let row = |from: &str, to: &str, inode: u32| {
            format!(
                "   1: {from} {to} 01 00000000:00000000 00:00000000 00000000  1000        0 {inode} 1 0\n"
            )
        };
        let uid = |text: String| uid_in(&mut text.as_bytes(), &ends).unwrap();
        assert_eq!(uid(row(&ends.0, &ends.1, 7)), Some(1000));
        assert_eq!(uid(row(&ends.1, &ends.0, 7)), None);
        assert_eq!(uid(row(&ends.0, "0100007F:0001", 7)), None);
        assert_eq!(uid(row("0100007F:0001", &ends.1, 7)), None);
        assert_eq!(uid(row(&ends.0, &ends.1, 0)), None);
        assert_eq!(uid(String::new()), None);
    }
}
