/*
 * Copies a file in one of the ways that Linux has for reading one.
 *
 *   reader WAY BLOCK FROM TO       FROM is - for what is open as standard input
 *
 * Exits 0 with everything up to the end of the file in TO, or 1 with what was read until then in TO and the error on
 * standard error. Whoever calls it compares TO: a way that gives other bytes, another end or no end is broken.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <libaio.h>
#include <liburing.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* Requests under way at a time. */
#define DEPTH 8
/* Direct I/O needs buffers that are aligned like blocks of a disk. */
#define ALIGNMENT 4096

static const char *way;
static size_t block;
static int from, to;
/* How far TO is. */
static off_t done;
/* A way that never ends is stopped here. */
static const off_t most = 256 << 20;

static _Noreturn void fail(const char *call, int error)
{
	fprintf(stderr, "%s: %s at %lld: %s\n", way, call, (long long)done, strerror(error));
	exit(1);
}

/* With IORING_SETUP_SQPOLL the kernel takes requests when it comes to it. */
static struct io_uring_sqe *request(struct io_uring *ring)
{
	struct io_uring_sqe *free;
	while (!(free = io_uring_get_sqe(ring)))
		io_uring_sqring_wait(ring);
	return free;
}

static void *buffer(size_t size)
{
	void *memory;
	if (posix_memalign(&memory, ALIGNMENT, size + ALIGNMENT))
		fail("memory", ENOMEM);
	return memory;
}

static void buffers(struct iovec parts[DEPTH])
{
	for (int i = 0; i < DEPTH; i++)
		parts[i] = (struct iovec){ buffer(block), block };
}

static void put(const void *bytes, size_t count)
{
	if (done + (off_t)count > most)
		fail("no end", EOVERFLOW);
	if (pwrite(to, bytes, count, done) != (ssize_t)count)
		fail("write", errno);
	done += count;
}

/* Puts what a call gave; tells whether it was the end. */
static int took(const char *call, const void *bytes, ssize_t count)
{
	if (count < 0)
		fail(call, errno);
	put(bytes, count);
	return count == 0;
}

/* Puts what DEPTH reads gave, one behind the other. All blocks but the last are full, and behind it there is nothing. */
static int took_all(const char *call, const struct iovec *parts, const ssize_t *results)
{
	int ended = 0;
	for (int i = 0; i < DEPTH; i++) {
		if (results[i] < 0)
			fail(call, -results[i]);
		if (ended && results[i])
			fail("bytes behind the end", EIO);
		put(parts[i].iov_base, results[i]);
		ended = results[i] < (ssize_t)block;
	}
	return ended;
}

static void by_read(int)
{
	char *bytes = buffer(block);
	while (!took("read", bytes, read(from, bytes, block)))
		;
}

static void by_pread(int)
{
	char *bytes = buffer(block);
	while (!took("pread", bytes, pread(from, bytes, block, done)))
		;
}

/* The last block first. */
static void by_pread_backwards(int)
{
	struct stat st;
	char *bytes = buffer(block);
	if (fstat(from, &st))
		fail("fstat", errno);
	for (off_t at = st.st_size / block * block; at >= 0; at -= block) {
		ssize_t count = pread(from, bytes, block, at);
		if (count < 0)
			fail("pread", errno);
		if (count != (st.st_size - at < (off_t)block ? st.st_size - at : (off_t)block))
			fail("a short pread", EIO);
		if (pwrite(to, bytes, count, at) != count)
			fail("write", errno);
	}
	if (pread(from, bytes, block, st.st_size) != 0)
		fail("pread at the end", EIO);
}

/* Two buffers of different sizes; preadv2 with flags. */
static void by_vector(int positioned)
{
	char *bytes = buffer(block + 7);
	for (;;) {
		struct iovec parts[2] = { { bytes, 7 }, { bytes + 7, block } };
		ssize_t count = positioned == 0 ? readv(from, parts, 2)
			: positioned == 1       ? preadv(from, parts, 2, done)
						: preadv2(from, parts, 2, done, RWF_HIPRI);
		if (took("readv", bytes, count))
			return;
	}
}

/* First what is there without waiting, then the rest. */
static void by_nowait(int)
{
	char *bytes = buffer(block);
	struct iovec part = { bytes, block };
	for (;;) {
		ssize_t count = preadv2(from, &part, 1, done, RWF_NOWAIT);
		if (count < 0 && (errno == EAGAIN || errno == EOPNOTSUPP))
			count = preadv2(from, &part, 1, done, 0);
		if (took("preadv2", bytes, count))
			return;
	}
}

static sigjmp_buf refused;

static void on_bus_error(int signal)
{
	siglongjmp(refused, signal);
}

static void by_mmap(int flags)
{
	struct stat st;
	if (fstat(from, &st))
		fail("fstat", errno);
	if (st.st_size == 0)
		return;
	const char *bytes = mmap(NULL, st.st_size, PROT_READ, flags, from, 0);
	if (bytes == MAP_FAILED)
		fail("mmap", errno);
	signal(SIGBUS, on_bus_error);
	if (sigsetjmp(refused, 1))
		fail("a mapped page", EIO);
	char *copy = buffer(block);
	while (done < st.st_size) {
		size_t left = st.st_size - done, count = left < block ? left : block;
		memcpy(copy, bytes + done, count);
		put(copy, count);
	}
	/* Behind the end a page is zeros. */
	for (off_t at = st.st_size; at % sysconf(_SC_PAGESIZE); at++)
		if (((const volatile char *)bytes)[at])
			fail("bytes behind the end", EIO);
	munmap((void *)bytes, st.st_size);
}

/* Everything that comes out of `source` until it is closed; never more than was put in. */
static void drain(int source, size_t count)
{
	char *bytes = buffer(count);
	while (count) {
		ssize_t got = read(source, bytes, count);
		if (got <= 0)
			fail("drain", got ? errno : EPIPE);
		put(bytes, got);
		count -= got;
	}
	free(bytes);
}

enum { AT_POSITION, AT_OFFSET };

/* Into a socket or a pipe, which must not fill up: nobody reads meanwhile. */
static void through(const char *call, int ends[2], int is_pipe, int positioned)
{
	off_t at = 0, *offset = positioned == AT_OFFSET ? &at : NULL;
	size_t ask = block < 65536 ? block : 65536;
	for (;;) {
		ssize_t count = is_pipe ? splice(from, offset, ends[1], NULL, ask, 0)
					: sendfile(ends[1], from, offset, ask);
		if (count < 0)
			fail(call, errno);
		if (count == 0)
			return;
		drain(ends[0], count);
		if (offset && at != done)
			fail("the offset", EIO);
	}
}

static void by_sendfile(int positioned)
{
	int ends[2], size = 1 << 20;
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends))
		fail("socketpair", errno);
	setsockopt(ends[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
	through("sendfile", ends, 0, positioned);
}

static void by_splice(int positioned)
{
	int ends[2];
	if (pipe(ends))
		fail("pipe", errno);
	through("splice", ends, 1, positioned);
}

/* As programs use it: what the kernel does not copy, read(2) does. */
static void by_copy_file_range(int positioned)
{
	loff_t at = 0, target = 0;
	for (;;) {
		ssize_t count = copy_file_range(from, positioned == AT_OFFSET ? &at : NULL, to, &target, block, 0);
		if (count < 0 && done == 0 && (errno == EXDEV || errno == EINVAL))
			return by_read(0);
		if (count < 0)
			fail("copy_file_range", errno);
		if (count == 0)
			return;
		done += count;
		if (done > most)
			fail("no end", EOVERFLOW);
	}
}

static void by_libaio(int)
{
	io_context_t context = 0;
	struct iocb requests[DEPTH], *pointers[DEPTH];
	struct io_event events[DEPTH];
	struct iovec parts[DEPTH];
	int ended = 0, error = io_setup(DEPTH, &context);
	if (error < 0)
		fail("io_setup", -error);
	buffers(parts);
	while (!ended) {
		for (int i = 0; i < DEPTH; i++) {
			io_prep_pread(&requests[i], from, parts[i].iov_base, block, done + i * (off_t)block);
			requests[i].data = (void *)(long)i;
			pointers[i] = &requests[i];
		}
		if ((error = io_submit(context, DEPTH, pointers)) != DEPTH)
			fail("io_submit", error < 0 ? -error : EIO);
		if ((error = io_getevents(context, DEPTH, DEPTH, events, NULL)) != DEPTH)
			fail("io_getevents", error < 0 ? -error : EIO);
		ssize_t results[DEPTH];
		for (int i = 0; i < DEPTH; i++)
			results[(long)events[i].data] = (ssize_t)events[i].res;
		ended = took_all("aio", parts, results);
	}
	io_destroy(context);
}

/* What a ring answers, in the order in which it was asked. */
static void collect(struct io_uring *ring, int count, ssize_t *results)
{
	int error = io_uring_submit_and_wait(ring, count);
	if (error < 0)
		fail("io_uring_submit", -error);
	for (int i = 0; i < count; i++) {
		struct io_uring_cqe *answer;
		if ((error = io_uring_wait_cqe(ring, &answer)))
			fail("io_uring_wait", -error);
		results[answer->user_data] = answer->res;
		io_uring_cqe_seen(ring, answer);
	}
}

enum { PLAIN, FIXED, VECTOR, REGISTERED_FILE, POLLED, LINKED };

static void set_up(struct io_uring *ring, struct iovec parts[DEPTH], int kind)
{
	int error = io_uring_queue_init(DEPTH, ring, kind == POLLED ? IORING_SETUP_SQPOLL : 0);
	if (error)
		fail("io_uring_queue_init", -error);
	buffers(parts);
	if (kind == FIXED && (error = io_uring_register_buffers(ring, parts, DEPTH)))
		fail("io_uring_register_buffers", -error);
	if (kind == REGISTERED_FILE && (error = io_uring_register_files(ring, &from, 1)))
		fail("io_uring_register_files", -error);
}

/* Asks for a block at `at`, -1 for the position of the file. */
static struct io_uring_sqe *ask(struct io_uring *ring, const struct iovec *parts, int i, int kind, off_t at)
{
	struct io_uring_sqe *ask = request(ring);
	if (kind == FIXED)
		io_uring_prep_read_fixed(ask, from, parts[i].iov_base, block, at, i);
	else if (kind == VECTOR)
		io_uring_prep_readv(ask, from, &parts[i], 1, at);
	else
		io_uring_prep_read(ask, kind == REGISTERED_FILE ? 0 : from, parts[i].iov_base, block, at);
	if (kind == REGISTERED_FILE)
		ask->flags |= IOSQE_FIXED_FILE;
	ask->user_data = i;
	return ask;
}

/* Several at once, each with its offset. */
static void by_uring(int kind)
{
	struct io_uring ring;
	struct iovec parts[DEPTH];
	int ended = 0;
	set_up(&ring, parts, kind);
	while (!ended) {
		ssize_t results[DEPTH];
		for (int i = 0; i < DEPTH; i++)
			ask(&ring, parts, i, kind, done + i * (off_t)block);
		collect(&ring, DEPTH, results);
		ended = took_all("io_uring", parts, results);
	}
	io_uring_queue_exit(&ring);
}

/* One after the other, at the file's own position, as read(2). */
static void by_uring_position(int kind)
{
	struct io_uring ring;
	struct iovec parts[DEPTH];
	int links = kind == LINKED ? DEPTH : 1;
	set_up(&ring, parts, kind);
	for (;;) {
		ssize_t results[DEPTH];
		for (int i = 0; i < links; i++) {
			struct io_uring_sqe *asked = ask(&ring, parts, i, kind, -1);
			/* The next one begins when this one has ended; a short one breaks the chain. */
			if (i + 1 < links)
				asked->flags |= IOSQE_IO_LINK;
		}
		collect(&ring, links, results);
		for (int i = 0; i < links; i++) {
			if (results[i] == -ECANCELED)
				break;
			if (results[i] < 0)
				fail("io_uring", -results[i]);
			put(parts[i].iov_base, results[i]);
			if (lseek(from, 0, SEEK_CUR) < done)
				fail("the position of the file", EIO);
			if (results[i] == 0) {
				io_uring_queue_exit(&ring);
				return;
			}
		}
	}
}

static const struct {
	const char *name;
	void (*copy)(int);
	int argument;
} ways[] = {
	{ "read", by_read, 0 },
	{ "pread", by_pread, 0 },
	{ "pread-backwards", by_pread_backwards, 0 },
	{ "readv", by_vector, 0 },
	{ "preadv", by_vector, 1 },
	{ "preadv2", by_vector, 2 },
	{ "nowait", by_nowait, 0 },
	{ "mmap", by_mmap, MAP_SHARED },
	{ "mmap-private", by_mmap, MAP_PRIVATE },
	{ "mmap-populate", by_mmap, MAP_PRIVATE | MAP_POPULATE },
	{ "sendfile", by_sendfile, AT_POSITION },
	{ "sendfile-offset", by_sendfile, AT_OFFSET },
	{ "splice", by_splice, AT_POSITION },
	{ "splice-offset", by_splice, AT_OFFSET },
	{ "copy-file-range", by_copy_file_range, AT_POSITION },
	{ "copy-file-range-offset", by_copy_file_range, AT_OFFSET },
	{ "libaio", by_libaio, 0 },
	{ "uring", by_uring, PLAIN },
	{ "uring-fixed", by_uring, FIXED },
	{ "uring-readv", by_uring, VECTOR },
	{ "uring-registered", by_uring, REGISTERED_FILE },
	{ "uring-polled", by_uring, POLLED },
	{ "uring-position", by_uring_position, PLAIN },
	{ "uring-position-fixed", by_uring_position, FIXED },
	{ "uring-position-readv", by_uring_position, VECTOR },
	{ "uring-position-linked", by_uring_position, LINKED },
};

int main(int count, char **args)
{
	if (count != 5) {
		fprintf(stderr, "usage: reader WAY BLOCK FROM TO\n");
		return 2;
	}
	way = args[1];
	block = strtoul(args[2], NULL, 10);
	const char *name = way;
	int direct = strncmp(name, "direct-", 7) == 0 ? O_DIRECT : 0;
	if (direct)
		name += 7;
	if (!strcmp(args[3], "-")) {
		from = STDIN_FILENO;
		if (direct && fcntl(from, F_SETFL, fcntl(from, F_GETFL) | O_DIRECT))
			fail("fcntl", errno);
	} else if ((from = open(args[3], O_RDONLY | O_CLOEXEC | direct)) < 0) {
		fail("open", errno);
	}
	to = open(args[4], O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (to < 0)
		fail("open of the copy", errno);

	size_t i = 0, all = sizeof ways / sizeof *ways;
	while (i < all && strcmp(name, ways[i].name))
		i++;
	if (i == all) {
		fprintf(stderr, "unknown way: %s\n", way);
		return 2;
	}
	ways[i].copy(ways[i].argument);
	if (close(from))
		fail("close", errno);
	return 0;
}
