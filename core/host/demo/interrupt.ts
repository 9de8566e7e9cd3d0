/** Thrown into what waits when the user interrupts. */
export class Interrupted extends Error {}

/**
 * Runs something that SIGINT and SIGTERM interrupt. A second signal ends the process at once: whoever asks twice does not want to wait, and
 * what a demo has started is cleaned up behind a process that is gone.
 *
 * @param act gets a signal that is aborted by the interruption; it cleans up before it ends
 * @returns its result; null when it was interrupted, whatever it said then
 */
export async function interruptible<T>(act: (signal: AbortSignal) => Promise<T | null>): Promise<T | null> {
  const interrupt = new AbortController();
  const onSignal = () => {
    if (interrupt.signal.aborted) process.exit(130);
    interrupt.abort(new Interrupted('interrupted'));
  };
  process.on('SIGINT', onSignal).on('SIGTERM', onSignal);
  try {
    const result = await act(interrupt.signal);
    return interrupt.signal.aborted ? null : result;
  } catch (error) {
    // Programs on the same terminal were interrupted too, and what they leave undone is no failure.
    if (interrupt.signal.aborted) return null;
    throw error;
  } finally {
    process.off('SIGINT', onSignal).off('SIGTERM', onSignal);
  }
}
