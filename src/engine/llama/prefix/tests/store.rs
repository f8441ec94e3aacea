//! What is kept, what goes, and what comes back from disk.

use std::fs;
use std::path::PathBuf;
use std::sync::mpsc;

use super::super::{Block, DiskLimits, Key, Limits, Lookup, Root, Store, Usage};
use super::names;

const SIZE: usize = 100;

fn block(of: usize) -> Block {
    Block::from_bytes(vec![u8::try_from(of).unwrap(); SIZE])
}

fn in_memory(blocks: u64) -> Store {
    let limits = Limits {
        memory: blocks * SIZE as u64,
        disk: None,
    };
    Store::new(&limits, || {}).unwrap()
}

fn put(store: &mut Store, chain: &[Key], at: usize) {
    let parent = at.checked_sub(1).map(|before| chain[before]);
    store.put(chain[at], parent, block(at));
}

fn put_all(store: &mut Store, chain: &[Key]) {
    (0..chain.len()).for_each(|at| put(store, chain, at));
}

fn held(store: &Store, chain: &[Key]) -> usize {
    let held = chain.iter().take_while(|key| store.holds(key)).count();
    let all = chain.iter().filter(|key| store.holds(key)).count();
    assert_eq!(held, all, "a block without the one before it");
    held
}

#[test]
fn a_block_is_found_again_until_others_need_its_room() {
    let mut store = in_memory(4);
    let (a, b) = (names("a", 2), names("b", 3));
    put_all(&mut store, &a);
    assert_eq!(store.get(&a[1]), Lookup::Ready(block(1).into()));
    assert_eq!(store.get(&b[0]), Lookup::Absent);
    put_all(&mut store, &b);
    // The end of the older path went first.
    assert_eq!((held(&store, &a), held(&store, &b)), (1, 3));
    let usage: Usage = store.usage();
    assert_eq!((usage.blocks, usage.bytes), (4, 4 * SIZE as u64));
    assert_eq!((usage.hits, usage.misses, usage.evictions), (1, 1, 1));
}

#[test]
fn a_path_that_is_used_stays_as_a_whole() {
    let mut store = in_memory(6);
    let (a, b, c) = (names("a", 3), names("b", 3), names("c", 3));
    put_all(&mut store, &a);
    put_all(&mut store, &b);
    for key in &a {
        assert!(matches!(store.get(key), Lookup::Ready(_)));
    }
    put_all(&mut store, &c);
    assert_eq!((held(&store, &a), held(&store, &b)), (3, 0));
}

#[test]
fn a_chain_longer_than_the_room_keeps_its_beginning() {
    let mut store = in_memory(3);
    let a = names("a", 8);
    put_all(&mut store, &a);
    assert_eq!(held(&store, &a), 3);
    assert_eq!(store.usage().refused, 5);
}

#[test]
fn a_block_without_the_one_before_it_is_not_kept() {
    let mut store = in_memory(3);
    let a = names("a", 2);
    put(&mut store, &a, 1);
    assert_eq!(store.usage().blocks, 0);
    assert_eq!(store.usage().refused, 1);
}

#[test]
fn a_block_in_use_outlives_its_eviction() {
    let mut store = in_memory(1);
    let (a, b) = (names("a", 1), names("b", 1));
    put(&mut store, &a, 0);
    let Lookup::Ready(used) = store.get(&a[0]) else {
        panic!("it is there");
    };
    put(&mut store, &b, 0);
    assert_eq!(store.get(&a[0]), Lookup::Absent);
    assert_eq!(used.as_bytes(), [0; SIZE]);
}

/// A directory that is gone when the test is over.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let name = format!("prefix-{}", uuid::Uuid::new_v4().simple());
        Self(std::env::temp_dir().join(name))
    }

    /// The files of the model, by name.
    fn files(&self) -> Vec<PathBuf> {
        let folder = fs::read_dir(self.folder()).unwrap();
        let mut files: Vec<_> = folder.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    fn folder(&self) -> PathBuf {
        self.0.join(model().key().to_string())
    }

    /// The file of a block.
    fn file(&self, key: &Key) -> PathBuf {
        let files = self.files();
        let name = |file: &PathBuf| file.file_name().unwrap().to_string_lossy().into_owned();
        let found = files
            .iter()
            .find(|&file| name(file).starts_with(&key.to_string()));
        found.expect("a file").clone()
    }

    fn limits(&self, memory: u64, disk: u64) -> Limits {
        Limits {
            memory: memory * SIZE as u64,
            disk: Some(DiskLimits {
                directory: self.0.clone(),
                bytes: disk * FILE,
                model: model(),
                block: SIZE,
            }),
        }
    }

    fn store(&self, memory: u64, disk: u64) -> Awaited {
        let limits = self.limits(memory, disk);
        let (wake, woken) = mpsc::sync_channel(64);
        let wake = move || wake.send(()).unwrap();
        let store = Store::new(&limits, wake).unwrap();
        Awaited { store, woken }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Bytes of a block's file.
const FILE: u64 = SIZE as u64 + 16 + 3 * 32;

fn model() -> Root {
    Root::new(&[b"the model"])
}

/// A store and its wake-ups.
struct Awaited {
    store: Store,
    woken: mpsc::Receiver<()>,
}

impl Awaited {
    /// Waits for as many reads as there are blocks to load, then asks again.
    fn load(&mut self, chain: &[Key]) -> Vec<Lookup> {
        let first: Vec<_> = chain.iter().map(|key| self.store.get(key)).collect();
        for _ in first.iter().filter(|found| **found == Lookup::Loading) {
            self.woken.recv().unwrap();
        }
        self.store.poll();
        chain.iter().map(|key| self.store.get(key)).collect()
    }

    /// Lets the disk thread write all that waits: a read is done after at most one write more.
    fn until_written(&mut self, blocks: u64) {
        while self.store.usage().disk_writes < blocks {
            std::thread::yield_now();
            self.store.poll();
        }
    }
}

fn ready(at: usize) -> Lookup {
    Lookup::Ready(block(at).into())
}

#[test]
fn blocks_survive_a_restart() {
    let directory = Directory::new();
    let a = names("a", 3);
    put_all(&mut directory.store(9, 9).store, &a);
    assert_eq!(directory.files().len(), 3);
    let mut again = directory.store(9, 9);
    assert_eq!(again.store.usage().disk_blocks, 3);
    assert_eq!(again.store.usage().disk_bytes, 3 * FILE);
    assert!(!again.store.holds(&a[0]));
    assert_eq!(again.load(&a), [ready(0), ready(1), ready(2)]);
    assert_eq!(again.store.usage().disk_reads, 3);
}

#[test]
fn a_block_that_memory_let_go_comes_back_from_disk() {
    let directory = Directory::new();
    let (a, b) = (names("a", 2), names("b", 2));
    let mut store = directory.store(2, 9);
    put_all(&mut store.store, &a);
    put_all(&mut store.store, &b);
    store.until_written(4);
    assert_eq!(held(&store.store, &a), 0);
    assert_eq!(store.load(&a), [ready(0), ready(1)]);
    assert_eq!(held(&store.store, &b), 0);
}

#[test]
fn a_block_is_not_read_when_nothing_may_go_for_it() {
    let directory = Directory::new();
    let a = names("a", 3);
    put_all(&mut directory.store(9, 9).store, &a);
    let mut small = directory.store(2, 9);
    assert_eq!(small.load(&a), [ready(0), ready(1), Lookup::Absent]);
}

#[test]
fn a_block_that_is_computed_while_it_is_read_is_kept_once() {
    let directory = Directory::new();
    let a = names("a", 1);
    put_all(&mut directory.store(9, 9).store, &a);
    let mut again = directory.store(9, 9);
    assert_eq!(again.store.get(&a[0]), Lookup::Loading);
    assert_eq!(again.store.get(&a[0]), Lookup::Loading);
    put(&mut again.store, &a, 0);
    assert_eq!(again.store.get(&a[0]), ready(0));
    again.woken.recv().unwrap();
    again.store.poll();
    assert_eq!(again.store.get(&a[0]), ready(0));
    assert_eq!(again.store.usage().bytes, SIZE as u64);
}

#[test]
fn the_disks_limit_is_kept_by_recency_and_from_the_end_of_paths() {
    let directory = Directory::new();
    let (a, b) = (names("a", 2), names("b", 3));
    let mut store = directory.store(9, 4);
    put_all(&mut store.store, &a);
    store.until_written(2);
    put_all(&mut store.store, &b);
    store.until_written(5);
    let usage = store.store.usage();
    assert_eq!((usage.disk_blocks, usage.disk_evictions), (4, 1));
    drop(store);
    assert_eq!(directory.files().len(), 4);
    assert_eq!(
        directory.store(9, 9).load(&a)[..],
        [ready(0), Lookup::Absent]
    );
    // A smaller limit is kept from the start.
    let mut smaller = directory.store(9, 2);
    assert_eq!(directory.files().len(), 2);
    assert_eq!(smaller.store.usage().disk_evictions, 2);
    let found = [smaller.load(&a), smaller.load(&b)].concat();
    let ready = found
        .iter()
        .filter(|found| matches!(found, Lookup::Ready(_)));
    assert_eq!(ready.count(), 2);
}

#[test]
fn a_damaged_file_is_found_removed_and_written_again() {
    let directory = Directory::new();
    let a = names("a", 3);
    put_all(&mut directory.store(9, 9).store, &a);
    let file = directory.file(&a[1]);
    let sound = fs::read(&file).unwrap();
    for at in [0, 20, 60, 100, sound.len() - 1] {
        let mut damaged = sound.clone();
        damaged[at] ^= 1;
        fs::write(&file, damaged).unwrap();
        let mut store = directory.store(9, 9);
        let found = store.load(&a);
        assert_eq!(found[..2], [ready(0), Lookup::Absent], "byte {at}");
        assert_eq!(store.store.usage().disk_damaged, 1);
        assert!(!file.exists());
        // Computed again it is whole again, with what was behind it.
        put(&mut store.store, &a, 1);
        assert_eq!(store.load(&a), [ready(0), ready(1), ready(2)]);
        drop(store);
        assert_eq!(fs::read(&file).unwrap(), sound);
    }
}

#[test]
fn files_that_cannot_be_used_are_removed_at_the_start_and_others_left() {
    let directory = Directory::new();
    let (a, b) = (names("a", 3), names("b", 1));
    put_all(&mut directory.store(9, 9).store, &a);
    let folder = directory.folder();
    fs::remove_file(directory.file(&a[1])).unwrap();
    fs::write(folder.join("half.kv.tmp"), b"half").unwrap();
    fs::write(
        folder.join("nonsense.kv"),
        vec![0; usize::try_from(FILE).unwrap()],
    )
    .unwrap();
    fs::write(folder.join(format!("{}-root.kv", b[0])), b"short").unwrap();
    fs::write(folder.join("notes.txt"), b"mine").unwrap();
    let mut store = directory.store(9, 9);
    // The block behind the missing one went too.
    assert_eq!(store.store.usage().disk_damaged, 3);
    assert_eq!(directory.files().len(), 2);
    assert!(folder.join("notes.txt").exists());
    assert_eq!(store.load(&a)[..2], [ready(0), Lookup::Absent]);
}

#[test]
fn a_renamed_file_is_not_taken_for_another_block() {
    let directory = Directory::new();
    let (a, b) = (names("a", 1), names("b", 1));
    put_all(&mut directory.store(9, 9).store, &a);
    let other = directory.folder().join(format!("{}-root.kv", b[0]));
    fs::rename(directory.file(&a[0]), other).unwrap();
    let mut store = directory.store(9, 9);
    assert_eq!(store.load(&b), [Lookup::Absent]);
    assert_eq!(store.store.usage().disk_damaged, 1);
}

#[test]
fn a_disk_that_takes_no_more_is_left_alone_for_a_while() {
    let directory = Directory::new();
    let mut store = directory.store(9, 9);
    // No file can be made in a folder that is gone.
    fs::remove_dir_all(directory.folder()).unwrap();
    let a = names("a", 3);
    put(&mut store.store, &a, 0);
    while store.store.usage().disk_failed == 0 {
        std::thread::yield_now();
        store.store.poll();
    }
    put(&mut store.store, &a, 1);
    let usage = store.store.usage();
    assert_eq!((usage.disk_failed, usage.disk_dropped), (1, 1));
    assert_eq!((usage.disk_blocks, usage.disk_bytes), (0, 0));
    assert_eq!(held(&store.store, &a), 2, "memory goes on");
}

#[test]
fn a_disk_that_is_behind_is_spared_and_catches_up_when_blocks_are_used_again() {
    let directory = Directory::new();
    let a = names("a", 1);
    put_all(&mut directory.store(99, 99).store, &a);
    let limits = directory.limits(99, 99);
    // Nobody takes the wake-up yet: the disk thread stands still behind its first read.
    let (wake, woken) = mpsc::sync_channel(0);
    let mut store = Store::new(&limits, move || wake.send(()).unwrap()).unwrap();
    assert_eq!(store.get(&a[0]), Lookup::Loading);
    let others: Vec<_> = (0..40).map(|name| names(&name.to_string(), 2)).collect();
    for chain in &others {
        put_all(&mut store, chain);
    }
    let usage = store.usage();
    // With 32 blocks waiting, 24 chains found no place; what follows on their disk has no beginning.
    assert_eq!((usage.disk_blocks, usage.disk_dropped), (1 + 32, 48));
    assert_eq!(usage.blocks, 81, "memory has all of them");
    woken.recv().unwrap();
    while store.usage().disk_writes < 32 {
        std::thread::yield_now();
        store.poll();
    }
    for chain in &others[30..] {
        assert_eq!(
            [store.get(&chain[0]), store.get(&chain[1])],
            [ready(0), ready(1)]
        );
    }
    drop(store);
    let mut again = directory.store(99, 99);
    assert_eq!(again.store.usage().disk_blocks, 1 + 32 + 20);
    assert_eq!(again.load(&others[39]), [ready(0), ready(1)]);
}

#[test]
fn models_do_not_share_blocks() {
    let directory = Directory::new();
    let a = names("a", 1);
    put_all(&mut directory.store(9, 9).store, &a);
    let mut limits = directory.limits(9, 9);
    limits.disk.as_mut().unwrap().model = Root::new(&[b"another model"]);
    let mut other = Store::new(&limits, || {}).unwrap();
    assert_eq!(other.get(&a[0]), Lookup::Absent);
}

#[test]
fn a_directory_that_cannot_be_made_is_an_error() {
    let directory = Directory::new();
    fs::write(&directory.0, b"a file").unwrap();
    assert!(Store::new(&directory.limits(9, 9), || {}).is_err());
    fs::remove_file(&directory.0).unwrap();
}
