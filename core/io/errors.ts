import { getSystemErrorName } from 'node:util';

/** An error as Node would make it for a failed system call. @param errno negative, as libuv gives it */
export function systemError(errno: number, call: string): NodeJS.ErrnoException {
  const code = getSystemErrorName(errno);
  const error: NodeJS.ErrnoException = new Error(`${call} ${code}`);
  error.errno = errno;
  error.code = code;
  error.syscall = call;
  return error;
}
