/* Every entry below a directory, as a program that was built without large-file support meets it: its name, its number by
   readdir(3) and by stat(2), and its links. Files are opened and read. Ends with 1 at the first error. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void fail(const char *what, const char *path)
{
    printf("%s of %s: %s\n", what, path, strerror(errno));
    exit(1);
}

static void list(const char *path)
{
    DIR *directory = opendir(path);
    struct dirent *entry;
    struct stat st;
    char below[4096], buffer[4096];
    if (directory == NULL)
        fail("opendir", path);
    while (errno = 0, (entry = readdir(directory)) != NULL) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        snprintf(below, sizeof below, "%s/%s", path, entry->d_name);
        if (lstat(below, &st) != 0)
            fail("lstat", below);
        printf("%s %lu %lu %lu\n", below, (unsigned long)entry->d_ino, (unsigned long)st.st_ino,
               (unsigned long)st.st_nlink);
        if (S_ISDIR(st.st_mode))
            list(below);
        if (S_ISREG(st.st_mode)) {
            int file = open(below, O_RDONLY);
            if (file < 0 || read(file, buffer, sizeof buffer) < 0 || fstat(file, &st) != 0)
                fail("read", below);
            close(file);
        }
    }
    if (errno != 0)
        fail("readdir", path);
    closedir(directory);
}

int main(int argc, char **argv)
{
    list(argc > 1 ? argv[1] : ".");
    return 0;
}
