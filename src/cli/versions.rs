//! `pdsfs versions`: lists the versions of a file, writes one to a file, or restores one.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use sha1::{Digest as _, Sha1};
use tempfile::NamedTempFile;

use super::columns::{aligned, beginning, short_id_len};
use super::format::{self, printable};
use super::mounted_file::MountedFile;
use super::output::{print_line, print_message};
use crate::control::client::ContentStream;
use crate::control::types::Version;
use crate::error::{Error, ErrorKind, Result};
use crate::escape::escaped_json;
use crate::ids::Sha1Hash;
use crate::units::Size;

/// Shortest part of an id that selects a version. A shorter argument is a number.
const ID_PREFIX_MIN: usize = 6;
/// Characters of an id in messages.
const ID_SHOWN: usize = 12;

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Each upload of a file makes a version, as far as the domain keeps versions. VERSION is a number or an \
        id of the list; the first characters of the id are enough."
)]
pub(super) struct VersionsArgs {
    #[command(subcommand)]
    command: Option<VersionsCommand>,
    /// A file in a mounted drive
    #[arg(required = true)]
    file: Option<PathBuf>,
    /// Print JSON: a list of {id, number, at_ms, bytes, author, sha1, description, latest, keep_forever}
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum VersionsCommand {
    /// Write a version to a file of its own
    Get(GetArgs),
    /// Make the content of a version the content of the file again; the present content stays as a version
    Restore(RestoreArgs),
}

#[derive(Debug, Args)]
struct GetArgs {
    /// A file in a mounted drive
    file: PathBuf,
    /// Number or id of the version
    version: String,
    /// The file to write, which is replaced; - is stdout [default: "NAME (version VERSION)" in this directory, if it
    /// does not exist]
    #[arg(long, short, value_name = "OUT")]
    output: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct RestoreArgs {
    /// A file in a mounted drive
    file: PathBuf,
    /// Number or id of the version
    version: String,
}

pub(super) async fn run(args: VersionsArgs) -> Result<ExitCode> {
    match (args.command, args.file) {
        (Some(VersionsCommand::Get(get)), _) => write_version(&get).await?,
        (Some(VersionsCommand::Restore(restore)), _) => restore_version(&restore).await?,
        (None, file) => list(&file.unwrap_or_default(), args.json).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(path: &Path, json: bool) -> Result<()> {
    let (_file, versions) = versions_of(path).await?;
    if json {
        let text =
            serde_json::to_string_pretty(&versions).map_err(|e| Error::from_source(ErrorKind::Io, e))?;
        return print_line(escaped_json(&text));
    }
    for line in table(&versions) {
        print_line(line)?;
    }
    if versions.len() <= 1 {
        print_message(format_args!("the drive keeps no older version of {}", shown(path)));
    }
    Ok(())
}

async fn versions_of(path: &Path) -> Result<(MountedFile, Vec<Version>)> {
    let file = MountedFile::find(path).await?;
    let versions = file.daemon.versions(file.ino).await.map_err(|e| e.context(shown(path)))?.versions;
    Ok((file, versions))
}

fn table(versions: &[Version]) -> Vec<String> {
    let id_len = short_id_len(&versions.iter().map(|version| version.id.as_str()).collect::<Vec<_>>());
    let head = ["VERSION", "TIME", "SIZE", "AUTHOR", "ID", ""].map(str::to_owned);
    let rows = versions.iter().map(|version| {
        [
            version.number.map_or_else(|| "-".to_owned(), |number| number.to_string()),
            version.at_ms.map_or_else(|| "-".to_owned(), format::local_time),
            version.bytes.map_or_else(|| "-".to_owned(), |bytes| Size(bytes).to_string()),
            printable(version.author.as_deref().unwrap_or("-")),
            printable(beginning(&version.id, id_len)),
            remarks(version),
        ]
    });
    aligned(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

fn remarks(version: &Version) -> String {
    let latest = version.latest.then(|| "latest".to_owned());
    let kept = version.keep_forever.then(|| "kept for ever".to_owned());
    let description = version.description.as_deref().map(printable);
    [latest, kept, description].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// The version that an argument selects.
fn select<'v>(versions: &'v [Version], wanted: &str, path: &Path) -> Result<&'v Version> {
    let by_number = wanted.parse().ok().filter(|_| wanted.len() < ID_PREFIX_MIN);
    let is_wanted = |version: &&Version| match by_number {
        Some(number) => version.number == Some(number),
        None => version.id == wanted || wanted.len() >= ID_PREFIX_MIN && version.id.starts_with(wanted),
    };
    let mut found = versions.iter().filter(is_wanted);
    match (found.next(), found.next()) {
        (Some(version), None) => Ok(version),
        (Some(_), Some(_)) => {
            let detail = format!("{wanted} is the beginning of several versions of {}", shown(path));
            Err(Error::new(ErrorKind::Invalid, detail))
        }
        (None, _) => {
            let detail = format!("{0} has no version {wanted} (pdsfs versions {0} lists them)", shown(path));
            Err(Error::new(ErrorKind::NotFound, detail))
        }
    }
}

async fn restore_version(args: &RestoreArgs) -> Result<()> {
    let (file, versions) = versions_of(&args.file).await?;
    let version = select(&versions, &args.version, &args.file)?;
    let path = shown(&args.file);
    file.daemon.restore_version(file.ino, &version.id).await.map_err(|e| e.context(&path))?;
    // A blocking call; the kernel asks the daemon, which answers from memory.
    tokio::task::spawn_blocking(move || file.refresh())
        .await
        .map_err(|e| Error::from_source(ErrorKind::Io, e))??;
    print_message(format_args!("restored {path}: {}", described(version)));
    Ok(())
}

async fn write_version(args: &GetArgs) -> Result<()> {
    let (file, versions) = versions_of(&args.file).await?;
    let version = select(&versions, &args.version, &args.file)?;
    let named = |error: Error| error.context(shown(&args.file));
    let content = file.daemon.version_content(file.ino, &version.id).await.map_err(named)?;
    if args.output.as_deref() == Some(Path::new("-")) {
        return copy(content, version, |bytes| {
            let mut out = std::io::stdout().lock();
            out.write_all(bytes)
                .and_then(|()| out.flush())
                .map_err(|e| Error::from(e).context("cannot write to stdout"))
        })
        .await;
    }
    let out = args.output.clone().unwrap_or_else(|| default_output(&args.file, version));
    let cannot_write = |error: Error| error.context(format!("cannot write {}", shown(&out)));
    let mut temporary = temporary_beside(&out).map_err(cannot_write)?;
    copy(content, version, |bytes| temporary.write_all(bytes).map_err(|e| cannot_write(e.into()))).await?;
    let stored =
        if args.output.is_some() { temporary.persist(&out) } else { temporary.persist_noclobber(&out) };
    stored.map_err(|e| cannot_write(e.error.into()))?;
    print_message(format_args!("wrote {}: {}", shown(&out), described(version)));
    Ok(())
}

/// Passes the content on, and checks its size and its hash.
async fn copy(
    mut content: ContentStream,
    version: &Version,
    mut write: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let (mut bytes_read, mut hash) = (0, Sha1::new());
    while let Some(bytes) = content.next().await? {
        bytes_read += bytes.len() as u64;
        hash.update(&bytes);
        write(&bytes)?;
    }
    if version.bytes.is_some_and(|bytes| bytes != bytes_read) {
        let detail = "the daemon could not read the whole version; its log says why";
        return Err(Error::new(ErrorKind::Io, detail));
    }
    let sha1 = Sha1Hash(hash.finalize().into()).to_string();
    if version.sha1.as_ref().is_some_and(|expected| *expected != sha1) {
        return Err(Error::new(ErrorKind::Integrity, "the content does not have the SHA-1 of the version"));
    }
    Ok(())
}

/// `photo (version 3).jpg` for `dir/photo.jpg`.
fn default_output(path: &Path, version: &Version) -> PathBuf {
    let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let number = version
        .number
        .map_or_else(|| beginning(&version.id, ID_SHOWN).to_owned(), |number| number.to_string());
    let mut name = format!("{} (version {number})", text(path.file_stem()));
    if let Some(extension) = path.extension() {
        name.push('.');
        name.push_str(&extension.to_string_lossy());
    }
    name.into()
}

fn temporary_beside(out: &Path) -> Result<NamedTempFile> {
    let dir = out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The mask of the process applies.
    let permissions = std::fs::Permissions::from_mode(0o666);
    Ok(tempfile::Builder::new().prefix(".pdsfs-").permissions(permissions).tempfile_in(dir)?)
}

fn described(version: &Version) -> String {
    let name = version
        .number
        .map_or_else(|| beginning(&version.id, ID_SHOWN).to_owned(), |number| number.to_string());
    let time = version.at_ms.map(|at| format!(" of {}", format::local_time(at))).unwrap_or_default();
    let size = version.bytes.map(|bytes| format!(", {}", Size(bytes))).unwrap_or_default();
    format!("version {}{time}{size}", printable(&name))
}

fn shown(path: &Path) -> String {
    printable(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(number: Option<u64>, id: &str) -> Version {
        Version { number, id: id.to_owned(), ..Version::default() }
    }

    #[test]
    fn version_is_a_number_or_the_beginning_of_an_id() {
        let versions = [version(Some(2), "123456aaaa"), version(Some(1), "123456bbbb"), version(None, "99")];
        let selected =
            |wanted: &str| select(&versions, wanted, Path::new("f")).map(|version| version.id.as_str());
        assert_eq!(selected("2").unwrap(), "123456aaaa");
        assert_eq!(selected("123456b").unwrap(), "123456bbbb");
        assert!(selected("123456").unwrap_err().to_string().contains("several versions"));
        for unknown in ["3", "12345", "123457", ""] {
            assert_eq!(selected(unknown).unwrap_err().kind(), ErrorKind::NotFound, "{unknown}");
        }
    }

    #[test]
    fn default_output_keeps_the_extension() {
        let named = |path: &str| default_output(Path::new(path), &version(Some(3), "x"));
        assert_eq!(named("a/photo.jpg"), Path::new("photo (version 3).jpg"));
        assert_eq!(named("/m/Makefile"), Path::new("Makefile (version 3)"));
    }
}
