"""What Offhook is measured against, written for this suite as people write it."""
