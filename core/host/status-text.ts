/** The status of a running gateway, for people. */
export function statusText(status: unknown): string {
  return `${JSON.stringify(status, null, 2)}\n`;
}
