"""Whether a process of ours lives, for Docker: `python -I -S tools/compose/healthy.py PORT [PATH]`.

It asks one route on loopback and ends with 0 when the answer is 200. A socket and nothing more: it runs every few
seconds in each container, where importing a client would cost more than the answer.
"""

import socket
import sys

LIMIT_S = 3.0
LONGEST = 65536


def status(port: int, path: str) -> str:
    """The status line of a GET. Raises `OSError`."""
    with socket.create_connection(("127.0.0.1", port), LIMIT_S) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        answer = connection.recv(LONGEST)
    return answer.decode("latin-1").split("\r\n", 1)[0]


def main(arguments: list[str]) -> int:
    """0 when the process answers 200, else 1 with the reason, which `docker inspect` shows."""
    port, path = int(arguments[0]), arguments[1] if len(arguments) > 1 else "/health"
    try:
        line = status(port, path)
    except OSError as error:
        print(f"no answer on port {port}: {error}")
        return 1
    print(line)
    return 0 if line.split(" ")[1:2] == ["200"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
